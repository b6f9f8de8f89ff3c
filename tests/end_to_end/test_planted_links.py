"""A stranger's run folder with links out of it is refused by every command, before anything is written."""

import pytest

from llm_lightning.__main__ import main


@pytest.mark.parametrize(
    ("command", "place"),
    [("fit", "samples"), ("fit", "checkpoints"), ("validate", "wandb/run-id"), ("predict", "curves.png")],
)
def test_a_link_out_of_the_run_folder(folder, cache, monkeypatch, capfd, command, place):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    (folder / "private").mkdir()
    (folder / "run" / place).parent.mkdir(parents=True)
    (folder / "run" / place).symlink_to(folder / "private")
    assert main([command, "--config", "tiny.yaml"]) == 2
    message = capfd.readouterr().err
    assert f"run/{place} is a link that leads out of the run folder" in message and "Traceback" not in message
    assert not list((folder / "private").iterdir())
    assert {path.name for path in (folder / "run").iterdir()} == {place.split("/")[0]}
