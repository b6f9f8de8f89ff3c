"""Which parameters are made orthogonal, in real networks."""

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, Qwen3MoeConfig, T5Config

from llm_lightning.errors import UserError
from llm_lightning.modules.checks import check_muon
from llm_lightning.modules.decay import block_matrices

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 50}  # fmt: skip


def names(model) -> set[str]:
    found = {id(parameter) for parameter in block_matrices(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def test_neither_embeddings_nor_heads_nor_norms():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, tie_word_embeddings=False))
    assert len(names(model)) == 2 * 7
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in names(model))


def test_experts_are_stacks_of_matrices():
    config = Qwen3MoeConfig(**SMALL, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, head_dim=8)
    model = AutoModelForCausalLM.from_config(config)
    shapes = {name.split(".", 3)[3]: p.ndim for name, p in model.named_parameters() if name in names(model)}
    assert shapes["mlp.experts.gate_up_proj"] == shapes["mlp.experts.down_proj"] == 3
    assert shapes["mlp.gate.weight"] == 2


def test_positions_within_blocks_are_embeddings():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    assert any("relative_attention_bias" in name for name, _ in model.named_parameters())
    assert not any("relative_attention_bias" in name or "shared" in name for name in names(model))


def test_adapters_matrices_and_not_their_vectors():
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    model = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    assert {name.split(".")[-3] for name in names(model)} == {"lora_A", "lora_B"}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    assert not names(get_peft_model(llama, IA3Config(target_modules=["k_proj"], feedforward_modules=[])))


def test_deepspeed_is_refused():
    with pytest.raises(UserError, match="DeepSpeed keeps the weights as flat vectors"):
        check_muon(DeepSpeedStrategy.__new__(DeepSpeedStrategy))
    check_muon(SingleDeviceStrategy(torch.device("cpu")))
