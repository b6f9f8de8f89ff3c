"""`llm-lightning compress`: mistakes are told before anything long."""

import pytest

from llm_lightning.__main__ import main
from tests.command_line import ROOT

CONFIG = ROOT / "configs" / "sweeps" / "compression.yaml"


def refused(capsys, *args: str) -> str:
    assert main(["compress", f"--config={CONFIG}", "--model.backbone.path=nowhere", "--data.path=nowhere", *args]) == 2
    return str(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--compress.prunings={a: null, b: null}"], "2 of a, b are null"),
        (["--compress.prunings={../a: null}"], "'../a' cannot be the name of a folder"),
        (
            ["--compress.prunings={a: null, b: {class_path: Pruning, init_args: {structure: NM, num_batches: -1}}}"],
            "num_batches=-1",
        ),
        (["--compress.quantization.init_args.schemes=[int9]"], "int9"),
        (
            ["--compress.quantization.schemes=[int8]", "--compress.quantization.max_perplexity_increase=null"],
            "no limit",
        ),
        (["--trainer.callbacks+=Quantization"], "Quantization, which compress adds by itself"),
        (["--trainer.max_stepz=1"], "max_stepz"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(capsys, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *flags)
    assert not list(tmp_path.iterdir())


def test_a_fit_is_no_search(capsys):
    assert main(["compress", f"--config={ROOT / 'configs' / 'pretrain.yaml'}"]) == 2
    assert "no --config has the settings `compress`" in capsys.readouterr().err
