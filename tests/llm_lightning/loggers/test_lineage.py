"""What a stranger's run folder says decides nothing about which files are sent."""

import json

import pytest

from llm_lightning.loggers.lineage import NOTE, input_model_artifact, output_model_artifact, report_artifact
from llm_lightning.loggers.wandb import WandbRun
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


@pytest.fixture
def private(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "id_rsa").write_text("PRIVATE")
    return folder


@pytest.fixture
def run(tmp_path, private):
    """A run folder with a note that names a folder of the user's."""
    root = tmp_path / "run"
    (root / "model" / "best").mkdir(parents=True)
    (root / "model" / "best" / "config.json").write_text("{}")
    (root / NOTE).parent.mkdir()
    note(root, private)
    return root


def note(root, private, **changes):
    description = {
        "run": "abc",
        "path": str(private),
        "files": {"config.json": 2},
        "step": 3,
        "metrics": {"val/loss": 1.5},
    }
    (root / NOTE).write_text(json.dumps(description | {"is_uploaded": True} | changes))


def staged(artifact):
    return {name: open(entry.local_path, "rb").read() for name, entry in artifact.manifest.entries.items()}  # noqa: PTH123


@pytest.mark.parametrize("log_model", [True, False])
def test_a_note_names_no_files_to_send(run, log_model):
    files = staged(input_model_artifact(str(run / "model" / "best"), log_model))
    assert set(files) == {"model.json"} | ({"config.json"} if log_model else set())
    assert not any(b"PRIVATE" in data for data in files.values())


def test_links_in_a_model_folder_are_not_sent(run, private):
    (run / "model" / "best" / "tokenizer.json").symlink_to(private / "id_rsa")
    (run / "model" / "best" / "more").symlink_to(private)
    assert set(staged(input_model_artifact(str(run / "model" / "best"), True))) == {"model.json", "config.json"}
    (run / "model" / "linked").symlink_to(private)
    assert set(staged(input_model_artifact(str(run / "model" / "linked"), True))) == {"model.json"}


def test_a_note_behind_a_link_is_not_read(run, private):
    (private / "secrets.json").write_text((run / NOTE).read_text().replace("abc", "from-a-secret-file"))
    (run / NOTE).unlink()
    (run / NOTE).symlink_to(private / "secrets.json")
    artifact = input_model_artifact(str(run / "model" / "best"), True)
    assert artifact.name.startswith("model-best") and "from-a-secret-file" not in json.dumps(artifact.metadata)


@pytest.mark.parametrize(
    "changes", [{"run": "../../x"}, {"run": 3}, {"files": {"a": "b"}}, {"metrics": None}, {"is_uploaded": "yes"}]
)
def test_a_note_of_another_shape_is_not_taken(run, private, changes):
    note(run, private, **changes)
    assert input_model_artifact(str(run / "model" / "best"), True).name.startswith("model-best")


def test_other_entries_of_a_note_are_left_out(run, private):
    note(run, private, more="x" * 1000)
    assert "more" not in input_model_artifact(str(run / "model" / "best"), False).metadata
    for text in ("", "[]", "{", "[" * 100_000):
        (run / NOTE).write_text(text)
        assert input_model_artifact(str(run / "model" / "best"), False).name.startswith("model-best")


@pytest.mark.parametrize("how", ["a link", "no id"])
def test_the_id_file_of_a_stranger_is_not_sent(run, private, how):
    place = run / "wandb" / "run-id"
    if how == "a link":
        (private / "password").write_text("hunter2hunter2")
        place.symlink_to(private / "password")
    else:
        place.write_text("root:x:0:0:root:/root")
    with pytest.warns(UserWarning, match="a new run is begun"):
        run_id = WandbRun()._run_id(run)
    assert len(run_id) == 8 and place.read_text() == run_id and not place.is_symlink()
    if how == "a link":
        assert (private / "password").read_text() == "hunter2hunter2"
    assert WandbRun()._run_id(run) == run_id


@pytest.mark.parametrize("log_model", [True, False])
def test_the_next_stage_uses_the_very_artifact_that_a_run_made(tmp_path, log_model):
    folder = tmp_path / "run" / "model" / "best"
    (folder / "more").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "more/a.json"):
        (folder / name).write_text(name)
    trainer = tiny_trainer(tmp_path / "run", max_steps=3, val_check_interval=3)
    trainer.fit(TinyModule(), TinyData())
    made = output_model_artifact(trainer, "abc123", log_model)
    used = input_model_artifact(str(folder), log_model)
    assert (used.name, used.digest, dict(used.metadata)) == (made.name, made.digest, dict(made.metadata))
    assert set(staged(used)) == {"model.json"} | (
        {"config.json", "model.safetensors", "more/a.json"} if log_model else set()
    )


def test_only_a_page_in_the_run_folder_is_sent(tmp_path):
    (tmp_path / "private.html").write_text("private")
    (tmp_path / "report.html").symlink_to(tmp_path / "private.html")
    assert report_artifact(tmp_path / "report.html", "abc123") is None
    assert report_artifact(tmp_path / "nowhere.html", "abc123") is None
    assert set(staged(report_artifact(tmp_path / "private.html", "abc123"))) == {"private.html"}
