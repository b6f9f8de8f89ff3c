"""A run folder with planted links: what the callbacks write takes their place, and what they point to stays."""

from types import SimpleNamespace

import pytest

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.artifacts.wandb_run_id import WandbRunId
from callbacks.monitoring.curves import draw_curves
from callbacks.monitoring.reliability import draw_reliability
from callbacks.monitoring.samples import Samples
from callbacks.pruning import report as pruning_report
from callbacks.quantization.report import write_json
from tests.callbacks.tiny_llama import TinyModule, tiny_trainer


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "victim").write_text("mine")
    return tmp_path / "victim"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    return tmp_path / "run"


BINS = SimpleNamespace(confidence=[0.5, 0.9], accuracy=[0.5, 0.8], num_pairs=[3, 4], ece=0.05)
WRITERS = {
    "quantization.json": lambda path: write_json(path, {"a": 1}),
    "reliability.png": lambda path: draw_reliability(BINS, path),
    "pruning.png": lambda path: pruning_report.draw(path, [(1, 0.1, 2.0), (2, 0.2, 2.1)], 2.5),
    "curves.png": lambda path: draw_curves(path.with_name("metrics.csv"), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_links_are_replaced(root, victim, name):
    (root / "metrics.csv").write_text("step,train/loss\n1,2.0\n2,1.5\n")
    (root / name).symlink_to(victim)
    WRITERS[name](root / name)
    assert victim.read_text() == "mine" and not (root / name).is_symlink() and (root / name).stat().st_size > 4


def test_samples(root, victim):
    trainer = tiny_trainer(root)
    (root / "samples" / "step-000000.txt").symlink_to(victim)
    Samples()._write(trainer, ["a prompt"], [" and more"])
    assert victim.read_text() == "mine" and "and more" in (root / "samples" / "step-000000.txt").read_text()
    (root / "samples" / "step-000000.txt").unlink()
    (root / "samples").rmdir()
    (root / "samples").symlink_to(victim.parent)
    with pytest.raises(OSError, match="is a link"):
        Samples()._write(trainer, ["a prompt"], [" and more"])
    assert not (victim.parent / "step-000000.txt").exists()


def test_the_id_of_a_run_is_no_other_files_text(root, victim):
    victim.write_text("root:x:0:0:root:/root")
    callback, note = WandbRunId(), root / "wandb" / "run-id"
    callback.setup(tiny_trainer(root), TinyModule(), "fit")
    note.parent.mkdir()
    note.symlink_to(victim)
    assert callback.state_dict() == {}
    callback.load_state_dict({"id": "../../x"})
    assert note.is_symlink()
    callback.load_state_dict({"id": "abc123"})
    assert callback.state_dict() == {"id": "abc123"} and not note.is_symlink()
    assert victim.read_text() == "root:x:0:0:root:/root"
    note.write_text("root:x:0:0:root:/root")
    assert callback.state_dict() == {}


def test_a_model_folder_that_is_a_link_is_not_written_into(root, victim, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "model").symlink_to(tmp_path / "elsewhere")
    callback = ModelFolder()
    with pytest.raises(OSError, match="is a link"):
        callback._write(tiny_trainer(root), TinyModule(), root / "model" / "last")
    assert not list((tmp_path / "elsewhere").iterdir())
