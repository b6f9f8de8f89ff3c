"""Two ranks, of which one stops: the other one says which, and ends."""

import os
import re
import signal
import threading

import pytest
import torch.distributed as dist

from callbacks import CallbackError, Heartbeat
from callbacks.monitoring.heartbeat import EXIT_CODE, _Beats, _key
from tests.callbacks.tiny_run import free_port, heartbeats, recorded, running, wait_until

BEATING = 100
"""Steps after which every rank has sent a beat: two seconds."""
RUN = {"world_size": 2, "max_steps": 100_000, "val_check_interval": 100_000, "step_seconds": 0.02}


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_silent_is_named_and_the_run_ends(processes, tmp_path, lost):
    with running(processes, tmp_path, port=free_port(), callbacks=heartbeats, **RUN) as ranks:
        wait_until(lambda: len(recorded(tmp_path, lost)) > BEATING)
        os.kill(ranks[lost].pid, signal.SIGSTOP)
        left = ranks[1 - lost]
        left.join(60)
        assert left.exitcode == EXIT_CODE
    output = (tmp_path / f"output-{1 - lost}.txt").read_text()
    assert re.search(
        rf"Heartbeat: silent for 2 s, last heard of: rank {lost} on \S+ in step \d+\. Rank {1 - lost} on", output
    )
    assert "the same command goes on from its newest checkpoint" in output


def test_a_rank_that_is_gone_is_named(processes, tmp_path):
    with running(processes, tmp_path, port=free_port(), callbacks=heartbeats, **RUN) as ranks:
        wait_until(lambda: len(recorded(tmp_path, 1)) > BEATING)
        os.kill(ranks[1].pid, signal.SIGKILL)
        ranks[0].join(60)
        assert ranks[0].exitcode not in (0, None)
    output = (tmp_path / "output-0.txt").read_text()
    assert re.search(r"rank 0 failed in step \d+\. Last heard of: rank 1 on \S+ in step \d+, \d+ s ago", output)


def test_no_thread_outlives_the_last_beat(monkeypatch):
    """One that is still in the store while Python shuts down can abort the process."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for _ in range(20):
        beats = _Beats(rank=1, world_size=2, timeout_s=60, place=lambda: "step 1")
        beats.end()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]
    assert b'"count": -1' in store.get(_key(1))


def test_a_timeout_of_nothing_is_refused():
    with pytest.raises(CallbackError, match="timeout_s=0"):
        Heartbeat(timeout_s=0)
