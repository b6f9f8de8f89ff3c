"""Who may read what is saved: whoever may read any new file of this user."""

import os
import stat

import peft
import pytest

from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.models.peft_methods import disturb


def whole(base, folder):
    save_model_folder(Backbone(path=str(base)).build(), None, folder)


def adapter(base, folder, config=None):
    made = Adapter(Backbone(path=str(base)).build(), config or peft.LoraConfig(target_modules=["q_proj"]))
    save_model_folder(made.model, None, folder, adapter=made)


def bottleneck(base, folder):
    adapter(base, folder, BottleneckConfig(reduction_factor=4))


def changed_base(base, folder):
    made = Adapter(Backbone(path=str(base)).build(), peft.LoraConfig(target_modules=["q_proj"]))
    disturb(made.model.get_base_model())
    save_model_folder(made.model, None, folder, adapter=made)


def in_several_files(base, folder, monkeypatch):
    monkeypatch.setattr("llm_lightning.models.export.is_sharded", lambda network: True)
    monkeypatch.setattr("llm_lightning.models.export.FILE_SIZE", "20KB")
    save_model_folder(Backbone(path=str(base)).build(), None, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("save", [whole, adapter, bottleneck, changed_base, in_several_files])
def test_every_file_follows_the_umask(base, tmp_path, save, umask, monkeypatch):
    folder, more = tmp_path / "saved", {"monkeypatch": monkeypatch} if save is in_several_files else {}
    former = os.umask(umask)
    try:
        save(base, folder, **more)
    finally:
        os.umask(former)
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert any(name.endswith(".safetensors") for name in files)
    assert set(files.values()) == {0o666 & ~umask}, files
