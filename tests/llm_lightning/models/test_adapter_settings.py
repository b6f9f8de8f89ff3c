"""Adapters from the command line and from the overlays in configs/peft."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from llm_lightning.__main__ import main
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config

ROOT = Path(__file__).parents[3]
OVERLAYS = sorted((ROOT / "configs" / "peft").glob("*.yaml"))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_model_folder(Backbone(config=tiny_config(hidden_size=64, num_hidden_layers=4)).build(), None, Path("base"))
    config = {
        "model": {"class_path": "CausalPretraining", "init_args": {"backbone": {"path": "base"}}},
        "data": {"class_path": "TextDataModule", "init_args": {"path": "texts", "vocab_size": 100}},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def printed(capfd, *args):
    code = main(["fit", "--config", "run.yaml", *args, "--print_config"])
    output = capfd.readouterr()
    assert code == 0, output.err
    return yaml.safe_load(output.out)["model"]["init_args"]


def test_an_adapter_by_flags(settings, capfd):
    model = printed(capfd, "--model.peft", "peft.LoraConfig", "--model.peft.r", "4", "--model.peft.use_dora=true")
    assert model["peft"]["class_path"].endswith("LoraConfig")
    assert model["peft"]["init_args"]["r"] == 4 and model["peft"]["init_args"]["use_dora"] is True
    assert model["backbone"]["path"] == "base"


def test_an_unknown_setting(settings, capfd):
    assert main(["fit", "--config", "run.yaml", "--model.peft=peft.LoraConfig", "--model.peft.rank=4"]) == 2
    assert "rank" in capfd.readouterr().err


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlays(settings, capfd, overlay):
    """Each leaves the rest of the configuration as it was, and its adapter fits a Llama."""
    wanted = yaml.safe_load(overlay.read_text())["model"]["init_args"]
    model = printed(capfd, "--config", str(overlay))
    assert model["peft"]["class_path"].rsplit(".", 1)[1] == wanted["peft"]["class_path"].rsplit(".", 1)[1]
    for name, value in wanted["peft"].get("init_args", {}).items():
        assert model["peft"]["init_args"][name] == value
    assert model["optimizer"]["init_args"]["lr"] == wanted["optimizer"]["init_args"]["lr"]
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.1
    assert model["backbone"]["path"] == "base"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_extra(settings, capfd):
    overlay = str(ROOT / "configs" / "peft" / "qlora.yaml")
    assert main(["fit", "--config", "run.yaml", "--config", overlay]) == 2
    assert "pip install 'llm-lightning[qlora]'" in capfd.readouterr().err


def test_quantized_weights_need_an_adapter(settings, capfd):
    flag = "--model.backbone.quantization=transformers.BitsAndBytesConfig"
    assert main(["fit", "--config", "run.yaml", flag]) == 2
    assert "quantized weights cannot train" in capfd.readouterr().err
