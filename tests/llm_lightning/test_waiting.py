"""Threads that wait sleep where others compute, and spin where nobody does."""

import os
import subprocess
import sys

import pytest

from llm_lightning.process import waiting

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")


@pytest.fixture
def in_use(monkeypatch):
    """Sets what the other processes are seen to use of four processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))

    def use(processors: float) -> None:
        monkeypatch.setattr(waiting, "processors_in_use", lambda: processors)

    return use


@linux
@pytest.mark.parametrize(
    ("used", "threads", "sleeps"),
    [(0.0, None, False), (0.4, None, False), (0.6, None, True), (3.0, None, True), (2.0, "2", False), (2.6, "2", True),
     (4.0, "1", False), (3.0, "4,1", True)],
)  # fmt: skip
def test_threads_sleep_where_they_would_share_processors(in_use, used, threads, sleeps):
    in_use(used)
    environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
    waiting.choose_waiting_policy(environment)
    assert environment.get("OMP_WAIT_POLICY") == ("PASSIVE" if sleeps else None)


@linux
@pytest.mark.parametrize("name", waiting.SETTINGS)
def test_the_users_own_setting_stays(in_use, name):
    in_use(4.0)
    environment = {name: "ACTIVE"}
    waiting.choose_waiting_policy(environment)
    assert environment == {name: "ACTIVE"}


@linux
def test_other_processes_are_seen_and_this_one_is_not_counted():
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        seen = waiting.processors_in_use(seconds=1.0)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert 0.5 < seen <= os.cpu_count() + 0.5


@linux
def test_the_command_sets_it_before_torch_is_loaded():
    code = (
        "import sys, os\n"
        "from llm_lightning.process import waiting\n"
        "def choose(environment=os.environ):\n"
        "    assert 'torch' not in sys.modules\n"
        "    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'\n"
        "    raise SystemExit(17)\n"
        "waiting.choose_waiting_policy = choose\n"
        "sys.argv = ['llm-lightning', 'fit']\n"
        "from llm_lightning.__main__ import main\n"
        "main()\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 17
