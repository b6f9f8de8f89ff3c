"""What a fit leaves to be read."""

import pytest

from llm_lightning.run.report import RunReport
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


def fit(folder, **settings):
    trainer = tiny_trainer(folder, callbacks=[RunReport("llm-lightning fit --config tiny.yaml")], **settings)
    module = TinyModule()
    trainer.fit(module, TinyData())
    return trainer


def test_commands_and_a_page_are_left(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.5\n")
    for _ in range(2):
        fit(tmp_path, max_steps=2)
    lines = (tmp_path / "commands.txt").read_text().splitlines()
    assert len(lines) == 2 and all(line.endswith(": llm-lightning fit --config tiny.yaml") for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert page.count("llm-lightning fit --config tiny.yaml") == 2
    assert f"report  {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.5\n")
    (tmp_path / "report.html").mkdir()
    (tmp_path / "commands.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match=r"report\.html was not written") as warned:
        trainer = fit(tmp_path, max_steps=2)
    assert trainer.state.finished and trainer.global_step == 2
    assert any("The command was not noted" in str(each.message) for each in warned)
    assert not (tmp_path / "elsewhere").exists()
