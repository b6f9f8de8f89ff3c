"""Whether two states of the code train the same: losses, rewards and final weights, to the last bit.

    python benchmarks/same_results.py BEFORE [AFTER]

The quickstart's five stages run for 20 steps each, as each state's own configs say, on one thread. BEFORE and AFTER are
anything that git knows; without AFTER it is the code as it lies here. Then the later code reads what the earlier one
left: its token cache, which must not be made anew, and its checkpoints, which must go on to the same losses.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

STAGES = ("pretrain", "sft", "reward", "ppo", "compress")
STEPS, MORE = 20, 24
MEASURED = ("throughput/", "time/", "memory/", "compute/")
"""Columns that no two runs have in common."""


class Checkout:
    """One state of the code, and where its runs write."""

    def __init__(self, code: Path, scratch: Path) -> None:
        self.code = code
        self.scratch = scratch
        self.cache = scratch / "cache"
        scratch.mkdir(parents=True, exist_ok=True)

    def fit(self, stage: str, steps: int) -> str:
        """Run a stage of the quickstart; returns what it printed."""
        settings = [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=10", "--trainer.log_every_n_steps=1"]
        config = self.code / "configs" / "quickstart" / f"{stage}.yaml"
        environment = os.environ | {
            "PYTHONPATH": str(self.code),
            "LLM_LIGHTNING_CACHE": str(self.cache),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "llm_lightning", "fit", "--config", str(config), *settings]
        done = subprocess.run(command, cwd=self.scratch, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout + done.stderr

    def metrics(self, stage: str) -> list[dict[str, str]]:
        """The rows of a stage's metrics.csv without what is measured of the machine."""
        with (self.scratch / f"runs/quickstart-{stage}" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [{name: value for name, value in row.items() if not name.startswith(MEASURED)} for row in rows]

    def weights(self, stage: str) -> dict[str, str]:
        """A hash of every file of weights that a stage left."""
        folder = self.scratch / f"runs/quickstart-{stage}"
        files = sorted([*folder.rglob("*.safetensors"), *folder.glob("model*/**/*.bin")])
        return {str(file.relative_to(folder)): content_hash(file) for file in files}


def content_hash(file: Path) -> str:
    """Of a file of weights; the order in which a .safetensors names its metadata varies from run to run."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return hashlib.sha256(content).hexdigest()


def differences(one: Checkout, other: Checkout, stage: str) -> list[str]:
    """What differs between the same stage of two checkouts, a line each."""
    found = []
    before, after = one.metrics(stage), other.metrics(stage)
    if len(before) != len(after):
        found.append(f"{stage}: {len(before)} rows of metrics became {len(after)}")
    for number, (row, new) in enumerate(zip(before, after, strict=False)):
        names = [name for name in {**row, **new} if row.get(name, "") != new.get(name, "")]
        found += [f"{stage}: row {number}, {name}: {row.get(name)} became {new.get(name)}" for name in names]
    old_files, new_files = one.weights(stage), other.weights(stage)
    if not old_files:
        found.append(f"{stage}: there are no weights")
    changed = [name for name in {**old_files, **new_files} if old_files.get(name) != new_files.get(name)]
    return found + [f"{stage}: other weights in {name}" for name in changed]


def taken_over(before: Checkout, after: Checkout, stage: str) -> list[str]:
    """What differs where the later code goes on with the earlier one's run, from the earlier one going on with it."""
    own, heir = (Checkout(one.code, one.scratch.with_name(f"{one.scratch.name}-goes-on")) for one in (before, after))
    for one in (own, heir):
        shutil.copytree(before.scratch, one.scratch, dirs_exist_ok=True)
        known = {file.relative_to(one.scratch) for file in one.cache.rglob("*")}
        one.fit(stage, MORE)
    made = [file for file in heir.cache.rglob("*") if file.is_file() and file.relative_to(heir.scratch) not in known]
    fresh = [file for file in made if file.parent.name != "digests"]  # of files by their paths, which the copy changed
    found = differences(own, heir, stage)
    for one in (own, heir):
        shutil.rmtree(one.scratch)
    return found + [f"{stage}: the cache was not used, {file.relative_to(heir.cache)} is new" for file in fresh]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs; exit code 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    args = parser.parse_args(argv)
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="same-results-") as folder:
        root = Path(folder)
        states = []
        for name, revision in (("before", args.before), ("after", args.after)):
            code = here
            if revision:
                code = root / f"code-{name}"
                subprocess.run(["git", "-C", here, "worktree", "add", "-q", "--detach", code, revision], check=True)
            states.append(Checkout(code, root / name))
        try:
            return _compare(*states, args.stages)
        finally:
            for state in states:
                if state.code != here:
                    subprocess.run(["git", "-C", here, "worktree", "remove", "--force", state.code], check=True)


def _compare(before: Checkout, after: Checkout, stages: Sequence[str]) -> int:
    failed = 0
    for stage in stages:
        found = []
        for state in (before, after):
            state.fit(stage, STEPS)
        found += differences(before, after, stage)
        found += taken_over(before, after, stage) if stage != "compress" else []
        rows = len(before.metrics(stage))
        print(f"{stage}: {'the same' if not found else 'NOT the same'}, {rows} rows of metrics", flush=True)
        print("".join(f"  {line}\n" for line in found[:20]), end="", flush=True)
        failed += bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
