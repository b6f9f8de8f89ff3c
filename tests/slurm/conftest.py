import csv
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.slurm.cluster import CannotStartError, Cluster

# Step 12's checkpoint lies behind a validation, and faults after step 7 lose two steps.
FIT = (
    "fit", "--config", "tiny.yaml", "--data.batch_size=2", "--trainer.accumulate_grad_batches=1",
    "--trainer.max_steps=24", "--trainer.val_check_interval=12", "--data.num_workers=2",
    "--nodes=2", "--time=30", "--setup", "export MASTER_ADDR=127.0.0.1",
)  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.start()
    except CannotStartError as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.stop()


class Run:
    """A run that our command submitted, in `folder / "run"`."""

    def __init__(self, cluster: Cluster, folder: Path, cache: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.root = folder / "run"
        self.environment = cluster.environment | {
            "PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.job = ""

    def command(self, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "llm_lightning", *args],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def submit(self, *args: str, pace: str = "seconds: [0.15]", heartbeat_s: int = 120) -> str:
        """Submit a fit; the job's id."""
        own = f"[{{class_path: tests.slurm.pace.Pace, init_args: {{{pace}}}}}, {{class_path: Heartbeat, init_args: "
        own += f"{{timeout_s: {heartbeat_s}}}}}]"
        done = self.command("slurm", *FIT, f"--trainer.callbacks+={own}", *args)
        assert done.returncode == 0, done.stderr
        self.job = re.search(r"Submitted job (\d+)", done.stdout)[1]
        return self.job

    def reaches(self, step: int, attempt: int = 0, rank: int = 0, seconds: float = 180) -> None:
        """Wait until a rank has done a step."""
        path = self.root / f"rank-{rank}.jsonl"

        def there() -> bool:
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            return any(line["step"] >= step and int(line["attempt"]) >= attempt for line in lines)

        assert self.cluster.wait(there, seconds), self.log()

    def ends(self, seconds: float = 300) -> str:
        """Wait until the job is over for good; its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        assert self.cluster.wait(lambda: self.cluster.state(self.job) in over, seconds), self.log()
        return self.cluster.state(self.job)

    def log(self) -> str:
        path = self.root / "slurm" / f"{self.job}.log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    def report_latency(self, scenario: str) -> None:
        """Append what the first requeue took: from the last step to the next attempt, and from there to its first."""
        lines = [json.loads(line) for line in (self.root / "rank-0.jsonl").read_text().splitlines()]
        last = max(line["time"] for line in lines if line["attempt"] == "0")
        first = min(line["time"] for line in lines if line["attempt"] != "0")
        began = datetime.fromisoformat(re.search(r"(?m)^(.{19}) attempt 2 ", self.log())[1]).timestamp()
        result = {"benchmark": "requeue", "contender": "llm-lightning", "model": "tiny", "unit": "s"}
        if path := os.environ.get("SLURM_RESULTS"):
            with Path(path).open("a") as file:
                for metric, seconds in (("step_to_next_attempt", began - last), ("attempt_to_step", first - began)):
                    value = {"metric": metric, "value": round(seconds, 1), "settings": {"scenario": scenario}}
                    file.write(json.dumps(result | value) + "\n")

    def losses(self) -> dict[str, tuple[str, str]]:
        with (self.root / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("train/loss") or row.get("val/loss")]
        return {row["step"]: (row.get("train/loss", ""), row.get("val/loss", "")) for row in rows}


@pytest.fixture
def slurm_run(cluster, folder, cache) -> Run:
    return Run(cluster, folder, cache)


@pytest.fixture(scope="session")
def uninterrupted(cluster, tmp_path_factory, texts, cache):
    """The losses of a run that nothing happens to."""
    from tests.command_line import CONFIG

    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "texts.jsonl").write_text(texts)
    (folder / "tiny.yaml").write_text(CONFIG)
    run = Run(cluster, folder, cache)
    run.submit(pace="seconds: [0]")
    assert run.ends() == "COMPLETED", run.log()
    losses = run.losses()
    assert len(losses) == 24
    return losses
