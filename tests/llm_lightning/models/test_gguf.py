"""An adapter on a network that was read from a .gguf file can be taken to another machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from peft import AutoPeftModelForCausalLM

from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.adapters.merging import base_of
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.loading import gguf
from tests.llm_lightning.models.peft_methods import METHODS, disturb

IDS = torch.arange(1, 13)[None]


@pytest.fixture
def cached(base, tmp_path, monkeypatch):
    """As `converted` leaves it. transformers writes no .gguf files, so that a tiny one cannot be made here."""
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "gguf" / "tiny-0123456789ab"
    shutil.copytree(base, folder)
    return folder


def saved(cached, config, *places):
    adapter = Adapter(Backbone(path=str(cached)).build(), config)
    disturb(adapter.model)
    for place in places:
        save_model_folder(adapter.model, None, place, adapter=adapter)
    return adapter.model.eval()(IDS).logits.detach()


def write_gguf(path, num_layers):
    """A .gguf file that describes a Llama, without its weights."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(num_layers)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_config_is_read_once_until_the_file_changes(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, 3)
    before = gguf._config.cache_info()
    config = Backbone(path=str(path)).read_config()
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 3, 32)
    config.num_hidden_layers = 77
    assert Backbone(path=str(path), dtype="bfloat16").read_config().num_hidden_layers == 3
    write_gguf(path, 5)
    os.utime(path, ns=(1, 1))
    assert Backbone(path=str(path)).read_config().num_hidden_layers == 5
    after = gguf._config.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (2, 1)


@pytest.mark.parametrize("config", [METHODS["lora"](), METHODS["ia3"]()], ids=["lora", "ia3"])
def test_the_base_lies_beside_the_adapters_and_survives_an_emptied_cache_and_a_move(cached, tmp_path, config, capsys):
    run = tmp_path / "run" / "model"
    expected = saved(cached, config, run / "last.tmp-1", run / "best")
    assert {path.name for path in run.iterdir()} == {"last.tmp-1", "best", cached.name}
    assert capsys.readouterr().out.count("kept beside it") == 1
    written = json.loads((run / "best" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert written == str(run / cached.name)
    shutil.rmtree(cached.parents[1])
    there = AutoPeftModelForCausalLM.from_pretrained(run / "best").eval()
    torch.testing.assert_close(there(IDS).logits, expected)
    run.rename(tmp_path / "elsewhere")
    assert base_of(tmp_path / "elsewhere" / "best") == str(tmp_path / "elsewhere" / cached.name)
    merged = Backbone(path=str(tmp_path / "elsewhere" / "best")).build().eval()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_bottlenecks_name_it_too(cached, tmp_path):
    saved(cached, BottleneckConfig(reduction_factor=4), tmp_path / "run" / "last")
    config = json.loads((tmp_path / "run" / "last" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "run" / cached.name)


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M", "/data/network", "relative/network"])
def test_other_bases_are_named_as_they_are(tmp_path, name):
    assert gguf.kept_beside(name, tmp_path / "last") == name
    assert not list(tmp_path.iterdir())


def test_a_disk_of_its_own_gets_a_copy(cached, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(gguf.os, "link", no_link)
    place = Path(gguf.kept_beside(str(cached), tmp_path / "run" / "last"))
    assert {file.name for file in place.iterdir()} == {file.name for file in cached.iterdir()}
