"""The smaller network computes what the masked one did, here and in a clean process."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from callbacks import CallbackError, ModelFolder, Pruning, RunSummary
from callbacks.pruning import Cubic, OneShot, Structured, Taylor, Wanda
from callbacks.pruning.masks import Masks
from callbacks.pruning.removal import remove_units
from callbacks.pruning.weights import find_weights
from callbacks.training_loop import end_fit
from tests.callbacks.pruning.fits import Chosen, fit
from tests.callbacks.tiny_llama import tiny_network

IDS = torch.arange(3, 51).view(2, 24)
SIZES = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 6, "num_key_value_heads": 3}  # fmt: skip


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    biases = {"attention_bias": True, "mlp_bias": True}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **biases, tie_word_embeddings=True, initializer_range=0.2))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, initializer_range=0.2))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, initializer_range=0.2))


def masked(network, structure, criterion):
    """The network with all units masked that the structure removes, and the masks."""
    weights = find_weights(network, None, ())
    masks = Masks(structure.attach(network, weights))
    weights = [weight for weight in weights if weight.name in masks.parameters]
    criterion.attach(weights, structure.blocks)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    network(input_ids=IDS, labels=IDS).loss.backward()
    criterion.before_step(weights)
    criterion.after_step()
    masks.update(structure.masks(weights, criterion, masks.kept, 0.5))
    masks.update(structure.masks(weights, criterion, masks.kept, 1.0))
    masks.apply_to_weights()
    return masks


@pytest.mark.parametrize("make", [llama, qwen2, qwen3])
@pytest.mark.parametrize(
    ("shares", "criterion"),
    [
        ({"channels": 0.25}, Wanda),
        ({"kv_groups": 0.34}, Taylor),
        ({"layers": 0.5}, Wanda),
        ({"channels": 0.5, "kv_groups": 0.34, "layers": 0.25}, Taylor),
    ],
    ids=str,
)
@torch.enable_grad()
def test_it_computes_the_same_with_fewer_weights(tmp_path, make, shares, criterion):
    torch.manual_seed(0)
    network, structure = make(), Structured(**shares)
    masks = masked(network, structure, criterion())
    network.eval()
    expected, before = network(input_ids=IDS).logits, network.num_parameters()
    remove_units(network, structure, masks.kept)
    torch.testing.assert_close(network(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert network.num_parameters() < before
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, network(input_ids=IDS).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    if "channels" in shares:
        assert config["intermediate_size"] == 64 * (1 - shares["channels"])
    if "kv_groups" in shares:
        assert (config["num_key_value_heads"], config["num_attention_heads"]) == (2, 4)
    if "layers" in shares:
        assert config["num_hidden_layers"] == 4 * (1 - shares["layers"])
    # With a key-value cache, whose places are the layers' numbers.
    written = network.generate(IDS[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0)
    again = network.generate(IDS[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(written, again)


def test_a_fit_ends_with_a_smaller_folder_that_a_clean_process_loads(tmp_path):
    pruning = Pruning(Structured(channels=0.5, kv_groups=0.5), schedule=Cubic(2, 8, 2))
    module, _ = fit(tmp_path, pruning, ModelFolder(), RunSummary(), measured=True, max_steps=10)
    torch.manual_seed(0)
    whole = tiny_network()
    whole.load_state_dict(module.full)
    expected = whole.eval()(input_ids=IDS).logits
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "network = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "print(network.num_parameters(), network.config.intermediate_size)\n"
        "torch.save(network(input_ids=torch.arange(3, 51).view(2, 24)).logits, sys.argv[2])"
    )
    command = [sys.executable, "-c", script, tmp_path / "model" / "last", tmp_path / "logits.pt"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert int(output[0]) < whole.num_parameters() and output[1] == "32"
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-5)
    text = (tmp_path / "pruning.txt").read_text()
    assert f"{whole.num_parameters():,}" in text and f"{int(output[0]):,}" in text and "no speed" not in text


@pytest.fixture(autouse=True)
def keep_full_weights(monkeypatch):
    """The masked weights at their full size, as they were before the cut."""
    from callbacks.pruning import removal

    cut = removal.remove_units

    def remember(model, *args):
        remember.full = {n: t.clone() for n, t in model.state_dict().items()}
        cut(model, *args)

    monkeypatch.setattr(removal, "remove_units", remember)
    monkeypatch.setattr(Chosen, "full", property(lambda self: remember.full), raising=False)


def test_what_no_config_can_say_is_refused(tmp_path):
    """32 hidden numbers cannot be shared out to 3 of 4 groups of heads in Llama's config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    module = Chosen()
    module.model = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 32, "num_attention_heads": 4,
                                                            "num_key_value_heads": 4}))  # fmt: skip
    with pytest.raises(CallbackError, match=r"LlamaConfig does not take.*num_attention_heads=3.*32"):
        fit(tmp_path, Pruning(Structured(kv_groups=0.25)), module=module)


def test_a_network_of_other_parts_is_refused(tmp_path):
    from transformers import Phi3Config, Phi3ForCausalLM

    module = Chosen()
    module.model = Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0))
    with pytest.raises(CallbackError, match=r"mlp\.gate_proj.*Phi3ForCausalLM"):
        fit(tmp_path, Pruning(Structured(channels=0.25)), module=module)


def test_a_stopped_run_is_not_cut(tmp_path):
    """Ctrl-C in the middle: the same command goes on with the whole network."""
    from callbacks import GracefulStop

    stop = GracefulStop()

    class Stop(ModelFolder):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                end_fit(trainer)
                stop.stopped = True

    pruning = Pruning(Structured(channels=0.5), schedule=OneShot(end=3))
    module, _ = fit(tmp_path, pruning, Stop(), stop, enable_checkpointing=True, max_steps=10, min_steps=0)
    assert module.trainer.global_step == 6 and not (tmp_path / "pruning.txt").exists()
    assert module.model.config.intermediate_size == 64 == module.model.model.layers[0].mlp.up_proj.out_features
