"""Two ranks whose newest sharded checkpoint a disk changed go on together from the one before."""

import shutil

import pytest

from llm_lightning.checkpoints.sharded_reader import PartsReader
from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, fit, metrics, prepare

FSDP2 = "--trainer.strategy=fsdp2"
FOUR, SIX = "--trainer.max_steps=4", "--trainer.max_steps=6"

pytestmark = pytest.mark.slow  # ten runs on two ranks


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def flip_in(kind):
    """Flips a bit in the middle of the largest tensor of a kind."""

    def change(file):
        places = PartsReader(file.parent).read_metadata().storage_data.items()
        own = [place for name, place in places if place.relative_path == file.name and name.fqn.startswith(kind)]
        largest = max(own, key=lambda place: place.length)
        flip(file, largest.offset + largest.length // 2)

    return change


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


FIRST, SECOND = "__0_0.distcp", "__1_0.distcp"
DAMAGE = {
    "first-flip": (FIRST, flip_in("state_dict.")),
    "second-flip": (SECOND, flip_in("optimizer_0.")),
    "second-cut": (SECOND, cut),
    "second-missing": (SECOND, lambda file: file.unlink()),
    "metadata-flip": (".metadata", lambda file: flip(file, file.stat().st_size // 3)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: `whole`, and one for each damage, gone on to the same step."""
    folder = tmp_path_factory.mktemp("damaged")
    prepare(folder, texts, network)
    run_all(folder, cache, [fit("pretrain", "whole", FSDP2, *TWO, FOUR)], num_ranks=2)
    assert sorted(path.name for path in (folder / "whole" / "checkpoints").iterdir()) == ["step=3.ckpt", "step=4.ckpt"]
    for name, (file, change) in DAMAGE.items():
        shutil.copytree(folder / "whole", folder / name)
        change(folder / name / "checkpoints" / "step=4.ckpt" / file)
    commands = [fit("pretrain", name, FSDP2, *TWO, SIX) for name in ("whole", *DAMAGE)]
    validate = [("validate", *fit("pretrain", "first-flip-kept", FSDP2, *TWO)[1:])]
    shutil.copytree(folder / "first-flip", folder / "first-flip-kept")
    run_all(folder, cache, validate + commands, num_ranks=2)
    return folder


def said(runs, root):
    """What the first rank printed in the command of a run."""
    output = (runs / "output-0.txt").read_text()
    (part,) = [part for part in output.split(" $ ")[1:] if f"--trainer.default_root_dir={root} " in part]
    return part


@pytest.mark.parametrize("name", DAMAGE)
def test_both_ranks_go_on_from_the_one_before_to_the_same_losses(runs, name):
    checkpoints = runs / name / "checkpoints"
    words = said(runs, name)
    assert f"{name}/checkpoints/step=4.ckpt" in words and DAMAGE[name][0] in words
    assert f"Going on from {name}/checkpoints/step=3.ckpt" in words and "Traceback" not in words
    assert (checkpoints / "step=4.ckpt.damaged").is_dir() and (checkpoints / "step=6.ckpt").is_dir()
    wanted, found = metrics(runs / "whole", 6), metrics(runs / name, 6)
    assert len(wanted) == 6 and found == wanted


def test_what_is_whole_is_gone_on_from(runs):
    assert "Going on from whole/checkpoints/step=4.ckpt" in said(runs, "whole")


def test_validation_takes_the_one_before_and_moves_nothing(runs):
    words = said(runs, "first-flip-kept")
    assert "Weights: first-flip-kept/checkpoints/step=3.ckpt" in words
    assert (runs / "first-flip-kept" / "checkpoints" / "step=4.ckpt").is_dir()


def test_ranks_that_the_command_starts_itself_agree_too(fresh_run, folder):
    args = ("--config", "tiny.yaml", FSDP2, *TWO, "--model.backbone.dropout=0", "--trainer.val_check_interval=9")
    code, output = fresh_run("fit", *args, SIX, "--trainer.default_root_dir=whole")
    assert code == 0, output
    code, output = fresh_run("fit", *args, FOUR)
    assert code == 0, output
    flip_in("state_dict.")(folder / "run" / "checkpoints" / "step=4.ckpt" / SECOND)
    code, output = fresh_run("fit", *args, SIX)
    assert code == 0 and "Going on from run/checkpoints/step=3.ckpt" in output, output
    assert output.count("is damaged") == 1 or output.count("Taken instead") == 1
    losses = [{s: r["train/loss"] for s, r in metrics(folder / name, 6).items()} for name in ("run", "whole")]
    assert len(losses[0]) == 6 and losses[0] == losses[1]
