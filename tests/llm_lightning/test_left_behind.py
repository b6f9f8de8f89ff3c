"""What killed runs left half written goes; what is whole, or another command's, stays."""

import pytest

from llm_lightning.errors import UserError
from llm_lightning.run.left_behind import refuse_links, remove_leftovers
from llm_lightning_safety.files import make_folder, write_text

LEFT = [
    "checkpoints/.step=9.ckpt.tmp-4711", "checkpoints/.step=12.ckpt.unfinished/__0_0.distcp", ".config.yaml.ab12.tmp",
    ".curves.png.ab12.tmp", "samples/.step-000003.txt.ab12.tmp", ".config.yaml.tmp-17", "wandb/.run-id.ab12.tmp",
]  # fmt: skip
KEPT = [
    "checkpoints/step=9.ckpt", "checkpoints/step=6.ckpt.damaged", "checkpoints/step=12.ckpt/.metadata", "config.yaml",
    ".predictions.jsonl.ab12.tmp", "predictions.jsonl.part", ".lock", "metrics.csv", "samples/step-000003.txt",
    "wandb/run-id", "my.tmp",
]  # fmt: skip


def test_leftovers(tmp_path):
    for name in [*LEFT, *KEPT]:
        make_folder((tmp_path / name).parent)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(KEPT)
    remove_leftovers(tmp_path / "missing")


def test_links(tmp_path):
    write_text(tmp_path / "run" / "samples" / "a.txt", "")
    refuse_links(tmp_path / "run")
    refuse_links(tmp_path / "missing")
    (tmp_path / "run" / "samples" / "b.txt").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"samples/b\.txt is a link that leads out of the run folder"):
        refuse_links(tmp_path / "run")


@pytest.mark.parametrize("run", ["offline-run-20261129_121900-ab12", "run-20261129_121900-ab12"])
def test_the_log_that_wandb_links_to(tmp_path, run):
    root, outside = tmp_path / "run", tmp_path / "cache" / "wandb" / "logs" / "core-debug.log"
    write_text(outside, "")
    log = root / "wandb" / run / "logs" / "debug-core.log"
    make_folder(log.parent)
    log.symlink_to(outside)
    refuse_links(root)
    for planted in (log.with_name("debug.log"), root / "wandb" / run / "files" / "debug-core.log"):
        make_folder(planted.parent)
        planted.symlink_to(outside)
        with pytest.raises(UserError, match=planted.name):
            refuse_links(root)
        planted.unlink()
