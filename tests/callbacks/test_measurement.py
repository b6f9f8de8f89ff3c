import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from callbacks import CallbackError
from callbacks.monitoring.measurement import (
    CHUNK_TOKENS,
    as_measured,
    folder_bytes,
    logits_of,
    measure_quality,
    measure_speed,
    memory_bytes,
    target_states,
    text_table,
    validation_batches,
)
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_network, tiny_trainer

DOCUMENTS = (5, 1, 10, 16, 3, 29)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return tiny_network()


@pytest.fixture
def packed():
    """Two rows of 32 tokens with documents of `DOCUMENTS`; in each the first tokens are a prompt."""
    ids = torch.randint(3, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS]).view(2, 32)
    labels = torch.where(positions < 2, -100, ids)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def one_by_one(network, batch) -> torch.Tensor:
    """The negative log-likelihood of each trained token, in float64, one document at a time."""
    network = copy.deepcopy(network).double().eval()
    losses = []
    for ids, labels in zip(
        batch["input_ids"].flatten().split(DOCUMENTS), batch["labels"].flatten().split(DOCUMENTS), strict=True
    ):
        logits = network(input_ids=ids[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, labels[1:], reduction="none", ignore_index=-100)[labels[1:] != -100])
    return torch.cat(losses)


def test_packed_rows_give_the_loss_of_their_documents_one_by_one(network, packed):
    expected = one_by_one(network, packed)
    quality = measure_quality(network, [packed])
    assert quality.num_tokens == len(expected) == sum(max(0, n - 2) for n in DOCUMENTS)
    assert quality.loss == pytest.approx(expected.mean().item(), rel=1e-6)
    assert quality.perplexity == pytest.approx(expected.mean().exp().item(), rel=1e-6)


def test_batches_weigh_by_their_tokens(network, packed):
    short = {name: tensor[:1, :5] for name, tensor in packed.items()}
    both, of_packed, of_short = (measure_quality(network, b) for b in ([packed, short], [packed], [short]))
    total = of_packed.loss * of_packed.num_tokens + of_short.loss * of_short.num_tokens
    assert both.loss == pytest.approx(total / (of_packed.num_tokens + of_short.num_tokens), rel=1e-6)
    assert both.loss != pytest.approx((of_packed.loss + of_short.loss) / 2, rel=1e-4)


def test_padded_rows_give_the_loss_of_the_rows_alone(network, packed):
    row = {name: packed[name][:1, :16] for name in ("input_ids", "labels")}
    padded = {name: F.pad(tensor, (4, 0), value=-100 if name == "labels" else 0) for name, tensor in row.items()}
    padded["attention_mask"] = F.pad(torch.ones(1, 16, dtype=torch.int64), (4, 0))
    padded["position_ids"] = F.pad(torch.arange(16)[None], (4, 0))
    assert measure_quality(network, [padded]).loss == pytest.approx(measure_quality(network, [row]).loss, rel=1e-5)


def test_distributions_are_compared_with_those_of_a_reference(network, packed):
    torch.manual_seed(1)
    other = tiny_network()
    with torch.no_grad():
        other.lm_head.weight.copy_(network.lm_head.weight + 0.02 * torch.randn_like(network.lm_head.weight))
        for parameter, of_network in zip(other.model.parameters(), network.model.parameters(), strict=True):
            parameter.copy_(of_network)
    quality = measure_quality(other, [packed], reference=network)
    p, q = (copy.deepcopy(x).double().eval() for x in (network, other))
    kl, same = [], []
    for ids in packed["input_ids"].flatten().split(DOCUMENTS):
        logp, logq = (x(input_ids=ids[None]).logits[0, 1:-1].log_softmax(-1) for x in (p, q))
        kl.append((logp.exp() * (logp - logq)).sum(-1))
        same.append(logp.argmax(-1) == logq.argmax(-1))
    assert quality.kl == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert quality.top_token_agreement == pytest.approx(torch.cat(same).double().mean().item())
    assert 0 < quality.top_token_agreement < 1 and quality.kl > 1e-4
    itself = measure_quality(network, [packed], reference=copy.deepcopy(network))
    assert itself.kl == pytest.approx(0, abs=1e-6) and itself.top_token_agreement == 1


def test_an_attention_that_needs_its_module_is_not_used_and_comes_back(network, packed):
    from llm_lightning.models.attention import ATTENTION, register_attention

    expected = measure_quality(network, [packed])
    register_attention()
    network.set_attn_implementation(ATTENTION)
    assert measure_quality(network.train(), [packed]) == expected
    assert network.config._attn_implementation == ATTENTION and network.training


def test_logits_are_never_those_of_a_whole_batch(network, monkeypatch):
    ids = torch.randint(3, 128, (8, 100))
    batch = {"input_ids": ids, "labels": ids}
    sizes = []
    network.lm_head.register_forward_hook(lambda *a: sizes.append(a[2].numel()))
    measure_quality(network, [batch])
    assert max(sizes) == CHUNK_TOKENS * 128 and sum(sizes) == 8 * 99 * 128


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "falcon_h1"])
def test_logits_are_scaled_as_the_architecture_does(name, packed):
    scalings = {
        "gemma2": {"final_logit_softcapping": 0.1},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 3.0},
        "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    }
    config = AutoConfig.for_model(
        name, vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, **scalings[name],
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    row = {key: packed[key][:1, :16] for key in ("input_ids", "labels")}
    with torch.no_grad(), as_measured(network):
        expected = network(input_ids=row["input_ids"]).logits[0][:-1][row["labels"][0, 1:] != -100]
        states, _ = target_states(network, row)
        torch.testing.assert_close(logits_of(network, states), expected)


def test_an_adapted_network_is_measured_with_its_adapter(network, packed):
    from peft import LoraConfig, get_peft_model

    before = measure_quality(network, [packed])
    adapted = get_peft_model(network, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with_adapter = measure_quality(adapted, [packed])
    assert abs(with_adapter.loss - before.loss) > 1e-4
    assert measure_quality(adapted.merge_and_unload(), [packed]).loss == pytest.approx(with_adapter.loss, rel=1e-5)


def test_batches_without_a_token_to_predict_are_refused(network, packed):
    nothing = packed | {"labels": torch.full_like(packed["labels"], -100)}
    with pytest.raises(CallbackError, match="all labels are -100"):
        measure_quality(network, [nothing])


def test_speed_is_of_cached_generation_and_a_larger_network_is_slower(network, monkeypatch):
    lengths = []
    network.model.register_forward_pre_hook(lambda *a: lengths.append(a[2]["input_ids"].shape[1]), with_kwargs=True)
    prompt = torch.arange(3, 67)[None]
    speed = measure_speed(network, prompt, num_new_tokens=8, repeats=2)
    assert lengths == 3 * ([64] + 8 * [1])
    assert speed.prefill_tokens_per_s > speed.decode_tokens_per_s > 0
    config = copy.deepcopy(network.config)
    config.num_hidden_layers, config.layer_types = 16, None
    slower = measure_speed(LlamaForCausalLM(config), prompt, num_new_tokens=8, repeats=2)
    assert slower.decode_tokens_per_s < 0.5 * speed.decode_tokens_per_s


def test_bytes_in_memory_count_shared_weights_once_and_half_precision_as_half():
    network = tiny_network()
    weights = sum(p.numel() for p in network.parameters())
    rope = sum(b.numel() for b in network.buffers())
    assert memory_bytes(network) == 4 * (weights + rope)
    assert memory_bytes(network.to(torch.bfloat16)) == pytest.approx(2 * weights + 4 * rope, abs=4 * rope)
    network.lm_head.weight = network.model.embed_tokens.weight
    assert memory_bytes(network) < 2 * weights


def test_bytes_on_disk_are_those_of_all_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(1000))
    (tmp_path / "y").write_bytes(bytes(24))
    assert folder_bytes(tmp_path) == 1024


def test_validation_batches_are_the_first_of_the_runs_own(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, val_check_interval=1)
    data = TinyData()
    trainer.fit(TinyModule(), data)
    expected = list(data.val_dataloader())
    for number in (1, 2, 99):
        batches = validation_batches(trainer, number)
        assert [b["input_ids"].tolist() for b in batches] == [b["input_ids"].tolist() for b in expected[:number]]
    trainer.fit_loop.epoch_loop.val_loop._combined_loader = None
    data.val_dataloader = list
    with pytest.raises(CallbackError, match="no validation data"):
        validation_batches(trainer, 1)


def test_a_table_is_aligned():
    table = text_table(["name", "bytes"], [["a", "1,000"], ["longer", "7"]])
    assert table.splitlines() == ["name    bytes", "a       1,000", "longer      7"]
