"""The reference on disk under two ranks: it trains as the live one does, and is the same for any number of ranks."""

import pytest

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare

FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"
CACHED = "--model.reference=cached"
TAKEN, BUILT = "Reference: log-probabilities from", "Reference: computing the log-probabilities of"

pytestmark = pytest.mark.slow  # many runs, most of them on two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs, `STAGE-HOW`, and what those with a cache said of it."""
    folder, said = tmp_path_factory.mktemp("reference"), {}
    prepare(folder, texts, network)

    def run(num_ranks, *commands):
        run_all(folder, cache, commands, num_ranks)
        _, *outputs = (folder / "output-0.txt").read_text().split(" $ fit ")
        roots = [arg.partition("=")[2] for args in commands for arg in args if "default_root_dir" in arg]
        said.update(zip(roots, outputs, strict=True))

    run(1, fit("dpo", "dpo-one"), fit("kto", "kto-one"), fit("dpo", "dpo-cached", CACHED))
    run(
        2,
        fit("dpo", "dpo-fsdp2", CACHED, FSDP2, *TWO),
        fit("dpo", "dpo-ddp", CACHED, DDP, *TWO),
        fit("dpo", "dpo-own", CACHED, FSDP2, *TWO, "--data.cache_dir=own"),
        fit("kto", "kto-ddp", CACHED, DDP, *TWO),
        fit("kto", "kto-fsdp2", CACHED, FSDP2, *TWO),
    )
    run(1, fit("kto", "kto-cached", CACHED))
    return folder, said


@pytest.mark.parametrize("name", ["dpo-fsdp2", "dpo-ddp", "dpo-own", "kto-fsdp2", "kto-ddp", "kto-cached"])
def test_it_trains_as_the_live_one_does(runs, name):
    folder, _ = runs
    one = folder / f"{name.partition('-')[0]}-one"
    assert_same_metrics(folder / name, one)
    assert_same_folder(folder / name / "model" / "last", one / "model" / "last")


def test_one_rank_and_two_take_it_from_each_other(runs):
    _, said = runs
    built = [name for name, text in said.items() if BUILT in text]
    taken = [name for name, text in said.items() if TAKEN in text]
    assert built == ["dpo-cached", "dpo-own", "kto-ddp"]
    assert taken == ["dpo-fsdp2", "dpo-ddp", "kto-fsdp2", "kto-cached"]
