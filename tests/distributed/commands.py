"""Runs several commands one after the other in the same ranks: starting them is what takes longest."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.command_line import ROOT


def run_all(
    folder: Path, cache: Path, commands: list[tuple[str, ...]], num_ranks: int = 1, env: dict[str, str] | None = None
) -> None:
    """`llm-lightning ARGS` for each in `folder`, in ranks that join as those of torchrun do; raises where one fails."""
    shared = {k: v for k, v in os.environ.items() if not k.startswith("LLM_LIGHTNING")} | {
        "PYTHONPATH": f"{ROOT}:{folder}", "LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", **(env or {}),
    }  # fmt: skip
    if num_ranks > 1:
        shared |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        shared |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "GROUP_RANK": "0"}
    ranks, logs = [], [folder / f"output-{rank}.txt" for rank in range(num_ranks)]
    for rank, log in enumerate(logs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
        command = [sys.executable, "-m", "tests.distributed.commands", json.dumps(commands)]
        with log.open("w") as file:
            ranks.append(subprocess.Popen(command, cwd=folder, env=shared | own, stdout=file, stderr=file))
    end = time.monotonic() + 400
    try:
        while time.monotonic() < end and None in (codes := [process.poll() for process in ranks]) and not any(codes):
            time.sleep(0.05)
        assert codes == [0] * num_ranks, "\n".join(log.read_text()[-4000:] for log in logs)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    from llm_lightning.__main__ import main

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        from tests.distributed import zero_on_cpu

        zero_on_cpu.allow()
    for args in json.loads(sys.argv[1]):
        print(f"{time.monotonic():.1f} $", *args, flush=True)
        if code := main(["--debug", *args]):
            sys.exit(code)
