"""Every adapter method: packed batches, training, saving, loading by peft alone, checkpoints."""

import subprocess
import sys

import peft
import pytest
import torch

from datamodules import TextDataModule
from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.description import describe
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.modules.decay import decay_groups
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config
from tests.llm_lightning.models.peft_methods import METHODS, RATES, disturb, fit, module

IDS = torch.arange(1, 13)[None]


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """All methods, each trained for some steps and saved."""
    root, runs = tmp_path_factory.mktemp("adapters"), {}
    weights = (base / "model.safetensors").read_bytes()
    for name, config in METHODS.items():
        run = module(base, config(), lr=RATES.get(name, 1e-2))
        run.configure_model()
        frozen = {n: p.detach().clone() for n, p in run.model.named_parameters() if not p.requires_grad}
        fit(run)
        folder = root / name
        save_model_folder(run.model, None, folder, adapter=run.adapter)
        runs[name] = run, frozen, folder
    assert (base / "model.safetensors").read_bytes() == weights
    return runs


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_the_base_stays(trained, name):
    run, frozen, _ = trained[name]
    assert sum(run.losses[-3:]) < 0.97 * sum(run.losses[:3])
    after = dict(run.model.named_parameters())
    assert frozen and all(torch.equal(after[n], value) for n, value in frozen.items() if "rank" not in n)


@pytest.mark.parametrize("name", METHODS)
def test_packed_equals_one_document_at_a_time(base, name):
    """Loss and gradients, against the forward pass of transformers and peft on single documents."""
    torch.manual_seed(0)
    model = Adapter(Backbone(path=str(base)).build(), METHODS[name]()).model
    disturb(model)
    documents = random_documents([7, 20, 3, 11])
    packed = stack(pack(documents[:2], 30), pack(documents[2:], 30))
    loss, *_ = language_loss(model, prepare_batch(packed))
    alone = sum(
        model(input_ids=torch.tensor([d]), labels=torch.tensor([[-100, *d[1:]]])).loss * (len(d) - 1) for d in documents
    )
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters), strict=True)
    for ours, theirs in pairs:
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["lora", "prompt_tuning", "llama_adapter", "bottleneck"])
def test_other_attention(base, name, attention):
    losses = []
    for implementation in ("llm_lightning_documents", attention):
        torch.manual_seed(0)
        model = Adapter(Backbone(path=str(base), attention=implementation).build(), METHODS[name]()).model
        disturb(model)
        losses.append(language_loss(model, prepare_batch(pack(random_documents([7, 20, 3]), 30)))[0])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_padded_rows_equal_packed_ones(base, name):
    torch.manual_seed(0)
    model = Adapter(Backbone(path=str(base)).build(), METHODS[name]()).model
    disturb(model)
    documents = random_documents([7, 20, 3, 11])
    padded = {
        "input_ids": torch.tensor([d + [0] * (20 - len(d)) for d in documents]),
        "labels": torch.tensor([[-100, *d[1:]] + [-100] * (20 - len(d)) for d in documents]),
        "attention_mask": torch.tensor([[1] * len(d) + [0] * (20 - len(d)) for d in documents]),
    }
    loss, *_ = language_loss(model, prepare_batch(padded))
    packed, *_ = language_loss(model, prepare_batch(pack(documents, 50)))
    torch.testing.assert_close(loss, packed, rtol=1e-5, atol=0)


LOAD_BY_PEFT_ALONE = """
import sys, torch, json
from pathlib import Path
from transformers import AutoModelForCausalLM
base, root, out = map(Path, sys.argv[1:])
ids = torch.arange(1, 13)[None]
logits = {}
for folder in sorted(root.iterdir()):
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base), config
    network = AutoModelForCausalLM.from_pretrained(base)
    if folder.name != "bottleneck":
        from peft import PeftModel
        network = PeftModel.from_pretrained(network, folder)
        assert not any(name.startswith(("llm_lightning", "lightning")) for name in sys.modules)
        logits[folder.name] = network.eval()(ids).logits.detach()
from llm_lightning.models.adapters.bottleneck import load_bottleneck
network = load_bottleneck(AutoModelForCausalLM.from_pretrained(base), root / "bottleneck")
logits["bottleneck"] = network(ids).logits.detach()
torch.save(logits, out)
"""


@pytest.fixture(scope="module")
def loaded(base, trained, tmp_path_factory):
    """The logits of every saved adapter, loaded in one clean process."""
    out = tmp_path_factory.mktemp("logits") / "logits.pt"
    root = trained["lora"][2].parent
    command = [
        sys.executable,
        "-W",
        "error::UserWarning:peft",
        "-c",
        LOAD_BY_PEFT_ALONE,
        str(base),
        str(root),
        str(out),
    ]
    subprocess.run(command, check=True)
    return torch.load(out)


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_in_a_clean_process(trained, loaded, name):
    run, _, folder = trained[name]
    expected = run.model.eval()(IDS).logits
    torch.testing.assert_close(loaded[name], expected, rtol=1e-5, atol=2e-5)
    plain = Backbone(path=run.backbone.path).build().eval()(IDS).logits
    assert (expected[:, -12:] - plain).abs().max() > 1e-2
    files = {"adapter_model.safetensors", "adapter_config.json", "generation_config.json", "README.md"}
    assert {p.name for p in folder.iterdir()} <= files


@pytest.mark.parametrize("name", METHODS)
def test_it_writes(trained, name):
    run = trained[name][0]
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    tokens = run.model.eval().generate(input_ids=IDS, attention_mask=mask, **options)
    assert tokens.shape == (1, 15)
    own = run.model(torch.cat([IDS, tokens[:, 12:14]], 1)).logits[0, -3:].argmax(-1)
    assert torch.equal(tokens[0, 12:], own)


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_float32_on_a_half_precision_base(base, name):
    model = Adapter(Backbone(path=str(base), dtype="bfloat16").build(), METHODS[name]()).model
    copies = ("adaption_", "modules_to_save")  # these are mixed with the network's own weights
    dtypes = {p.dtype for n, p in model.named_parameters() if p.requires_grad and not any(c in n for c in copies)}
    assert dtypes == {torch.float32} or name == "llama_adapter"
    assert {p.dtype for p in model.parameters() if not p.requires_grad} >= {torch.bfloat16}
    batch = prepare_batch(pack(random_documents([7, 20, 3]), 30))
    loss, *_ = language_loss(model, batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, *_ = language_loss(model, batch)
    torch.testing.assert_close(mixed, loss, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", ["lora", "prefix_tuning", "bottleneck", "llama_adapter"])
def test_pure_half_precision_leaves_the_adapter_alone(base, name):
    run = fit(module(base, METHODS[name]()), epochs=1, precision="bf16-true")
    trained = {p.dtype for p in run.model.parameters() if p.requires_grad}
    assert trained == {torch.bfloat16 if name == "llama_adapter" else torch.float32}
    assert {p.dtype for p in run.model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "backbone", "message"),
    [
        (lambda: peft.LoraConfig(target_modules=["query"]), {}, r"target_modules.*q_proj"),
        (lambda: peft.LoraConfig(init_lora_weights="eva", target_modules="all-linear"), {}, "pass over data"),
        (
            lambda: peft.LoraConfig(init_lora_weights="pissa", use_dora=True, target_modules="all-linear"),
            {},
            "use_dora",
        ),
        (lambda: peft.LoraConfig(target_modules=["act_fn"]), {}, "not supported"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3), {"attention": "sdpa"}, "model.backbone.attention"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3), {"activation_checkpointing": True}, "checkpointing"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3), {"compile": True}, "model.backbone.compile"),
        (lambda: peft.PromptTuningConfig(), {}, "num_virtual_tokens"),
        (lambda: peft.AdaptionPromptConfig(), {}, "adapter_len"),
        (lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=9), {}, "adapter layers"),
    ],
)
def test_mistakes_are_named(base, config, backbone, message):
    with pytest.raises(UserError, match=message):
        Adapter(Backbone(path=str(base), **backbone).build(), config())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "query"], r"'query' fits no module.*q_proj"),
        ("q_proj", "'q_proj' fits no module.*give a list"),
    ],
)
def test_names_are_checked_before_weights_are_read(base, targets, message):
    with pytest.raises(UserError, match=message):
        module(base, peft.LoraConfig(target_modules=targets)).check()


def test_mistakes_are_found_before_weights_are_read(base, trained):
    with pytest.raises(UserError, match=r"model\.backbone\.path"):
        run = module(base, METHODS["lora"]())
        run.backbone = Backbone(config=tiny_config())
        run.check()
    with pytest.raises(UserError, match="llm-lightning merge"):
        module(trained["lora"][2], METHODS["lora"]()).check()
    long_rows = TextDataModule("texts.jsonl", seq_len=126)  # of 128 positions
    with pytest.raises(UserError, match=r"data\.seq_len=126 with 5 virtual tokens"):
        module(base, METHODS["prefix_tuning"]()).check(long_rows)
    module(base, METHODS["lora"]()).check(long_rows)


def test_prompts_and_factors_do_not_decay(base):
    for name, decays in {"lora": True, "ia3": False, "prompt_tuning": False, "llama_adapter": False}.items():
        model = Adapter(Backbone(path=str(base)).build(), METHODS[name]()).model
        groups = decay_groups(model)
        assert len(groups) == 1 and ("weight_decay" not in groups[0]) == decays, name


def test_what_trains_is_said(base):
    model = Adapter(
        Backbone(path=str(base)).build(), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    ).model
    first, *kinds = describe(model, "32-true").splitlines()
    assert "% trained" in first and "LlamaForCausalLM" in first
    assert kinds == ["  q_proj x 2: 512 float32", "  down_proj x 2: 768 float32"]
    prompt = Adapter(Backbone(path=str(base)).build(), METHODS["prompt_tuning"]()).model
    assert describe(prompt, "32-true").splitlines()[1:] == ["  prompt_encoder x 1: 160 float32"]
    bottleneck = Adapter(Backbone(path=str(base)).build(), METHODS["bottleneck"]()).model
    assert [line.split(":")[0] for line in describe(bottleneck, "").splitlines()[1:]] == [
        "  o_proj x 2",
        "  down_proj x 2",
    ]


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(base):
    plain = fit(module(base, METHODS["lora"]()), epochs=1)
    compiled = fit(module(base, METHODS["lora"](), compile=True), epochs=1)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)


def test_activation_checkpointing_gives_the_same_losses(base):
    plain = fit(module(base, METHODS["lora"]()), epochs=1)
    saved = fit(module(base, METHODS["lora"](), activation_checkpointing=True), epochs=1)
    assert saved.losses == pytest.approx(plain.losses, rel=1e-6)
