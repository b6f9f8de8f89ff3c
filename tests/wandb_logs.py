"""What a run left for W&B, read by W&B's own reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

TRIES = 3  # the reader is a program of its own, which has failed once where the log was in order


def read(run: Path) -> list[dict]:
    """The records of a run's folder."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    quiet = os.environ | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}  # else it reports to W&B's server
    for _ in range(TRIES):
        reader = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
        if reader.returncode == 0:
            return [json.loads(line) for line in reader.stdout.splitlines() if line.startswith("{")]
    raise AssertionError(f"{run} cannot be read ({reader.returncode}):\n{reader.stderr}\n{reader.stdout[-1000:]}")


def history(records: list[dict]) -> list[dict]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]
