"""Merged networks give the logits of unmerged ones, and methods that cannot be merged say so."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.models.peft_methods import MERGEABLE, METHODS, disturb

IDS = torch.arange(1, 13)[None]


def saved(base, config, folder, **backbone):
    """An adapter with weights that matter, and the logits it gives."""
    adapter = Adapter(Backbone(path=str(base), **backbone).build(), config)
    disturb(adapter.model)
    save_model_folder(adapter.model, None, folder, adapter=adapter)
    return adapter.model.eval()(IDS).logits.detach()


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_equals_unmerged(base, tmp_path, name, capfd):
    expected = saved(base, METHODS[name](), tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    network = Backbone(path=str(tmp_path / "adapter")).build()
    torch.testing.assert_close(network.eval()(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in network.parameters())
    assert "adapter_config.json" not in {p.name for p in (tmp_path / "merged").iterdir()}


@pytest.mark.parametrize("name", ["head", "embeddings"])
def test_a_shared_weight_is_untied(base, tmp_path, name):
    """Embeddings and head are one weight in the base; an adapter on one of them must not change the other."""
    saved(base, METHODS[name](), tmp_path / "adapter")
    plain = Backbone(path=str(base)).build()
    network = Backbone(path=str(tmp_path / "adapter")).build()
    head, embeddings = network.lm_head.weight, network.model.embed_tokens.weight
    changed, kept = (head, embeddings) if name == "head" else (embeddings, head)
    assert torch.equal(kept, plain.lm_head.weight) and not torch.equal(changed, plain.lm_head.weight)
    assert not network.config.tie_word_embeddings


def test_the_dtype_of_the_base_is_kept(base, tmp_path):
    """Merged in float32 and rounded once, which is nearer than adding in bfloat16."""
    half = Backbone(path=str(base), dtype="bfloat16").build()
    save_model_folder(half, None, tmp_path / "half")
    saved(tmp_path / "half", METHODS["lora"](), tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    exact = Backbone(path=str(tmp_path / "adapter"), dtype="float32").build()
    assert merged.dtype == torch.bfloat16
    for (name, ours), theirs in zip(merged.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16()), name


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MERGEABLE])
def test_what_cannot_be_merged(base, tmp_path, name, capfd):
    saved(base, METHODS[name](), tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 2
    assert "cannot be merged" in capfd.readouterr().err
    with pytest.raises(UserError, match="cannot be merged"):
        Backbone(path=str(tmp_path / "adapter")).read_config()


def test_mistakes(base, tmp_path, capfd):
    adapter = tmp_path / "adapter"
    saved(base, METHODS["lora"](), adapter)
    for args, words in {
        ("merge", str(adapter)): "two folders",
        ("merge", str(base), str(tmp_path / "out")): "no adapter folder",
        ("merge", str(tmp_path / "nowhere"), str(tmp_path / "out")): "no adapter folder",
        ("merge", str(adapter), str(base)): "is not empty",
    }.items():
        assert main(list(args)) == 2
        assert words in capfd.readouterr().err

    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="base_model_name_or_path"):
        Backbone(path=str(adapter)).read_config()
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(UserError, match="/gone/away, which is not there"):
        Backbone(path=str(adapter)).read_config()


def test_an_adapter_for_another_network(base, tmp_path):
    saved(base, peft.LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    save_model_folder(Backbone(config=tiny_config(num_hidden_layers=3)).build(), None, tmp_path / "deeper")
    shutil.copytree(tmp_path / "adapter", tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "deeper")
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be merged: Found missing adapter keys"):
        Backbone(path=str(tmp_path / "moved")).build()
