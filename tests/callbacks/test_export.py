"""The callback Export, by the real command."""

import json

import pytest

from callbacks import CallbackError, Export, ModelFolder
from datamodules.encoding.tokenizer import train
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_network, tiny_trainer


class WithTokenizer(TinyModule):
    """Its folders can be asked texts."""

    def configure_model(self) -> None:
        if self.model is None:
            self.tokenizer = train(iter(["What is 1 plus 2? It is 3."] * 9), vocab_size=270)
            self.model = tiny_network()
            self.model.resize_token_embeddings(len(self.tokenizer))

    def save_model(self, folder) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fit(root, *callbacks, **settings):
    tiny_trainer(root, max_steps=2, val_check_interval=2, callbacks=list(callbacks), **settings).fit(
        WithTokenizer(), TinyData()
    )


def test_wrong_targets_are_told_before_training(tmp_path):
    with pytest.raises(CallbackError, match=r"Export.to: --to gguf:q3: gguf has no format 'q3'"):
        fit(tmp_path, ModelFolder(), Export(["merged", "gguf:q3"]))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("to", ["merged", []])
def test_targets_are_a_list(to):
    with pytest.raises(CallbackError, match="give a list of targets"):
        Export(to)


def test_there_has_to_be_a_model_folder(tmp_path):
    with pytest.raises(CallbackError, match="needs the callback ModelFolder"):
        fit(tmp_path, Export(["merged"]))


def test_a_rehearsal_exports_nothing(tmp_path):
    fit(tmp_path, ModelFolder(), Export(["merged"]), fast_dev_run=True)
    assert not (tmp_path / "exports").exists()


@pytest.mark.slow
def test_a_fit_ends_with_its_exports_or_says_why_not(tmp_path, capfd):
    fit(tmp_path, ModelFolder(), Export(["merged", "gguf:q8_0"], output=tmp_path / "out"))
    for name in ("merged-float32", "gguf-q8_0"):
        found = json.loads((tmp_path / "out" / name / "export_manifest.json").read_text())
        assert found["model"]["path"] == str(tmp_path / "model" / "best")
    with pytest.raises(CallbackError, match="gguf:q8_0 could be exported"):
        fit(tmp_path / "second", ModelFolder(), Export(["gguf:q8_0"], max_kl=1e-12))
    assert "more than max_kl 1e-12" in capfd.readouterr().out
    assert not (tmp_path / "second" / "exports" / "gguf-q8_0").exists()
    assert (tmp_path / "second" / "model" / "last").is_dir()
