"""Every causal architecture of the installed transformers, against the table in the docs."""

import os
import subprocess
import sys

import pytest

from tests.llm_lightning.models import architecture_table
from tests.llm_lightning.models.architecture_table import PAGE, WRONG, apart, committed


@pytest.mark.slow
def test_each_architecture_is_run_as_the_table_says():
    """In a process without threads, from which each architecture's own can be forked."""
    command = [sys.executable, "-m", architecture_table.__name__]
    found = subprocess.run(
        command, cwd=PAGE.parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]


def test_no_architecture_in_the_table_is_wrong():
    rows = [row for row in committed(PAGE.read_text()).splitlines() if row.startswith("| ")]
    assert len(rows) > 150 and not any(f"| {WRONG}" in row for row in rows)


def test_a_crash_is_a_row():
    assert apart(lambda: "fine") == "fine"
    assert apart(lambda: os.kill(os.getpid(), 9)) == f"{WRONG}: its process ended by SIGKILL"
    assert apart(lambda: 1 / 0) == f"{WRONG}: ZeroDivisionError: division by zero"
