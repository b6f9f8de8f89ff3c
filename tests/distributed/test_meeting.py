"""Two real ranks that meet: one line where all is well, and a message where something is not."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from torch import distributed as dist

from llm_lightning.launch.checks import LaunchError, MeetingError
from llm_lightning.preflight.meeting import looking
from llm_lightning.preflight.meeting.exchange import Exchange
from llm_lightning.preflight.meeting.looking import compare_versions
from llm_lightning.preflight.meeting.network import clocks, deviations
from tests.command_line import ROOT
from tests.distributed.commands import _free_port

pytestmark = pytest.mark.slow

COMMAND = ("--config", "tiny.yaml", "--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=2")


def two_ranks(
    folder, *command: str, of_second: dict[str, str] | None = None, num_started: int = 2
) -> tuple[list[int], list[str]]:
    """Run a command in two ranks, as torchrun would, or in the first one alone; exit codes and what each said."""
    shared = os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LLM_LIGHTNING_CACHE": "cache",
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (of_second or {} if rank else {}),
        )
        for rank in range(num_started)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], said


def test_check_looks_at_the_ranks_and_at_the_first_batch(folder):
    codes, said = two_ranks(folder, "llm_lightning", "check", *COMMAND)
    assert codes == [0, 0], said
    assert re.search(r"Ranks: 2 on 1 host, of the same versions; an all-reduce of 16 MiB takes [\d,]+ ms", said[0])
    assert "Ranks:" not in said[1]


def test_a_fit_is_refused_where_a_rank_has_another_version(folder):
    planted = folder / "other" / "peft-0.0.1.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    other = {"PYTHONPATH": f"{planted.parent}:{ROOT}"}
    codes, said = two_ranks(folder, "llm_lightning", "fit", *COMMAND, of_second=other)
    assert codes == [2, 2], said
    assert re.search(r"  peft: [\d.]+ on rank 0 \(\S+\); 0\.0\.1 on rank 1 \(\S+\)", said[0]), said[0]
    assert "transformers:" not in said[0] and "Traceback" not in "".join(said)
    assert "Tokenizing" not in said[0], "nothing long has begun"


def test_a_rank_that_does_not_come_is_named_and_the_run_may_be_tried_again(folder):
    wait = (
        "--trainer.strategy.class_path=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.timeout=0:00:02",
    )
    codes, [said] = two_ranks(folder, "llm_lightning", "fit", *COMMAND[:2], *COMMAND[3:], *wait, num_started=1)
    assert codes == [os.EX_TEMPFAIL], said
    assert re.search(r"error: 1 of 2 ranks did not come within 2 s: rank 1 \(\S+\)\.", said), said
    assert "Traceback" not in said and "Tokenizing" not in said


def test_ranks_tell_what_differs_and_wait_no_longer_than_they_may(folder):
    codes, said = two_ranks(folder, "tests.distributed.test_meeting")
    assert codes == [0, 0], said


def _at_rank(rank: int) -> None:
    exchange = Exchange(torch.device("cpu"))
    looking.look(exchange.device)  # all is well
    own = {"torch": "2.13", "peft": "0.17" if rank else "0.18"}
    with pytest.raises(LaunchError, match=r"  peft: 0\.18 on rank 0 \(.*\); 0\.17 on rank 1 \("):
        compare_versions(exchange, own)

    real = time.time
    if rank:
        time.time = lambda: real() + 30
    ahead = deviations(clocks(exchange))
    time.time = real
    assert sorted(abs(ahead).tolist()) == pytest.approx([0, 30], abs=1)

    if rank == 0:  # the other one does not come to this operation
        begin = time.monotonic()
        with pytest.raises(MeetingError, match="did not end within 1 s"):
            Exchange(exchange.device, limit_s=1).reduce(torch.zeros(1))
        assert time.monotonic() - begin < 5
    else:
        time.sleep(6)
    os._exit(0)  # the operation of the first rank is still there


if __name__ == "__main__":
    dist.init_process_group("gloo")
    _at_rank(dist.get_rank())
