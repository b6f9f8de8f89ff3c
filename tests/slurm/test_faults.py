"""Under a real SLURM, whatever befalls a run: it ends by itself with the losses of an uninterrupted one, bit for bit.

`pytest tests/slurm -m slow`; with SLURM_REPEATS=10 in the environment each scenario runs ten times, and what a requeue
took goes to the file named by SLURM_RESULTS.
"""

import os
import re
import signal

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("repeat", range(int(os.environ.get("SLURM_REPEATS", "1")))),
]


def finishes(run, uninterrupted, restarts: tuple[int, ...] = (1, 2)) -> None:
    """A second restart is SLURM's: a kill that it sends again after a minute meets the next attempt's step."""
    assert run.ends() == "COMPLETED", run.log()
    assert run.losses() == uninterrupted
    run.report_latency(os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split("[")[0].removeprefix("test_"))
    assert int(run.cluster.detail(run.job, "Restarts")) in restarts, run.log()


def test_sigusr1_with_a_straggler(slurm_run, uninterrupted, repeat):
    job = slurm_run.submit(pace="seconds: [0.05, 0.35]")
    slurm_run.reaches(7)
    slurm_run.cluster.call("scancel", "--signal=USR1", job)
    finishes(slurm_run, uninterrupted)
    stopped = int(re.search(r"Stopped at step (\d+)", slurm_run.log())[1])
    assert f"step={stopped}.ckpt" in slurm_run.log().split("attempt 2")[1], "nothing trained is lost"


def test_scontrol_requeue(slurm_run, uninterrupted, repeat):
    job = slurm_run.submit()
    slurm_run.reaches(7)
    slurm_run.cluster.call("scontrol", "requeue", job)
    finishes(slurm_run, uninterrupted)
    assert re.search("Stopped (at|in the validation of) step", slurm_run.log())


def test_preemption_by_a_job_of_higher_priority(slurm_run, uninterrupted, repeat):
    slurm_run.submit()
    slurm_run.reaches(7)
    urgent = slurm_run.cluster.call(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 5"
    )
    finishes(slurm_run, uninterrupted)
    assert slurm_run.cluster.state(urgent.strip()) == "COMPLETED"
    assert re.search("Stopped (at|in the validation of) step", slurm_run.log())


def test_kill_9_of_a_rank(slurm_run, uninterrupted, repeat):
    job = slurm_run.submit()
    slurm_run.reaches(7)
    os.kill(slurm_run.cluster.tasks(job)[1], signal.SIGKILL)
    finishes(slurm_run, uninterrupted)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named(slurm_run, uninterrupted, repeat, rank):
    job = slurm_run.submit(heartbeat_s=10)
    slurm_run.reaches(7)
    os.kill(slurm_run.cluster.tasks(job)[rank], signal.SIGSTOP)
    finishes(slurm_run, uninterrupted)
    host = ("alpha", "beta")[rank]
    assert re.search(rf"silent for 10 s, last heard of: rank {rank} on {host} in step \d+", slurm_run.log())


def test_death_of_a_node(slurm_run, uninterrupted, repeat):
    job = slurm_run.submit(heartbeat_s=60)
    slurm_run.reaches(7)
    slurm_run.cluster.lose_node("beta")
    assert slurm_run.cluster.wait(lambda: slurm_run.cluster.state(job) == "PENDING", 120), slurm_run.log()
    slurm_run.cluster.start_node("beta")
    finishes(slurm_run, uninterrupted)


def test_time_limit(slurm_run, uninterrupted, repeat):
    """Two minutes an attempt, of which the signal leaves 50 s, and starting takes a part: too few for 48 s of steps."""
    slurm_run.submit("--time=2", "--stop-before=70", pace="seconds: [2]")
    finishes(slurm_run, uninterrupted, restarts=(1, 2, 3, 4))
    assert re.search("Stopped (at|in the validation of) step", slurm_run.log())


def test_a_crash_loop_ends_at_its_bound(slurm_run, repeat):
    """It gets to step 6, and no further: what it wins at first does not count against it."""
    slurm_run.submit("--max-failures=2", pace="seconds: [0], crash_at: 7")
    assert slurm_run.ends() == "FAILED"
    log = slurm_run.log()
    assert log.count("requeued") == 2 and "giving up: 2 attempts in a row" in log
    assert not list((slurm_run.root / "slurm").glob("failures-*"))


def test_a_cancelled_run_stays_cancelled(slurm_run, repeat):
    job = slurm_run.submit()
    slurm_run.reaches(3)
    slurm_run.cluster.call("scancel", job)
    assert slurm_run.ends() == "CANCELLED"
    assert slurm_run.cluster.detail(job, "Restarts") == "0"
