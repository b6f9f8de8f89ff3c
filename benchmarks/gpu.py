"""All that only a GPU can show, by one command that half an hour is enough for.

    python benchmarks/gpu.py                       # to the end; started again, what is missing
    python benchmarks/gpu.py --minutes 9           # no step begins that could end later
    python benchmarks/gpu.py --rehearse            # all of it on a CPU, at tiny sizes, in minutes

Every step is a process with a time limit of its own; what it measured is written when it ends, so that a cut loses one.
Steps that failed are tried again once all others have run. In --folder are then `results.jsonl`, for
`benchmarks/results/`, `tables.md`, for `docs/speed.md`, `steps.jsonl`, how each step ended, `log.txt`, what they said,
and traces for chrome://tracing. Compilation is switched off in the rehearsal: it is the longest of it, and other code
on a CPU. What a bare machine lacks comes by `benchmarks/gpu_wheels.py`.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.on_gpu.figures import read, tables
from benchmarks.on_gpu.plan import FULL, REHEARSAL, Step, steps

ROOT = Path(__file__).resolve().parent.parent
DONE, FAILED, CUT = "done", "failed", "cut"


@dataclass(frozen=True)
class Folder:
    """What the run leaves."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def ends(self) -> Path:
        return self.path / "steps.jsonl"

    def missing(self, every: list[Step]) -> list[Step]:
        """Those that never ran, then those that did not end well."""
        ends = {row["step"]: row["end"] for row in read(self.ends)}
        left = [step for step in every if ends.get(step.name) != DONE]
        return sorted(left, key=lambda step: step.name in ends)

    def write_tables(self) -> None:
        rows = read(self.results)
        ends = {row["step"]: row for row in read(self.ends)}
        lines = [
            f"- {row['step']}: {row['end']} after {row['seconds']:.0f} s, {row['cpu_seconds']:.0f} of CPUs"
            for row in ends.values()
        ]
        (self.path / "tables.md").write_text(tables(rows) + "\n### Steps\n\n" + "\n".join(lines) + "\n")


def run(step: Step, folder: Folder, environment: dict[str, str], work: Path) -> dict[str, Any]:
    """One step; what it measured goes to the results, however it ended."""
    own = folder.path / "step.jsonl"
    own.unlink(missing_ok=True)
    places = {"{json}": str(own), "{work}": str(work), "{out}": str(folder.path)}
    command = list(step.command)
    for name, place in places.items():
        command = [part.replace(name, place) for part in command]
    begin, spent, end = time.monotonic(), cpu_seconds(), CUT
    with folder.log.open("a") as log:
        log.write(f"\n=== {step.name}\n{' '.join(command)}\n")
        log.flush()
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = FAILED if child.wait(step.limit) else DONE
        except subprocess.TimeoutExpired:
            pass
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # those that it started as well
                child.wait()
    if own.exists():
        stamp = {"date": time.strftime("%Y-%m-%d"), "step": step.name}
        with folder.results.open("a") as results:
            for row in read(own):
                results.write(json.dumps(row | {"settings": stamp | row["settings"]}) + "\n")
        own.unlink()
    took = {"seconds": round(time.monotonic() - begin, 1), "cpu_seconds": round(cpu_seconds() - spent, 1)}
    return {"step": step.name, "end": end} | took


def cpu_seconds() -> float:
    """Of all processes that have ended: on a machine that others use too, it says more than the time."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--folder", type=Path, help="default: runs/gpu, or runs/gpu-rehearsal")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no step may still run")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits, on a machine that is busy")
    parser.add_argument("--only", nargs="+", metavar="BEGINNING", help="steps whose names begin so, as in steps.jsonl")
    args = parser.parse_args(argv)
    args.folder = (args.folder or ROOT / "runs" / ("gpu-rehearsal" if args.rehearse else "gpu")).resolve()
    return args


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; exit code 1 if anything still is."""
    args = parse(argv)
    ending = time.monotonic() + 60 * args.minutes
    folder = Folder(args.folder)
    work = folder.path / "work"
    work.mkdir(parents=True, exist_ok=True)
    planned = steps(REHEARSAL if args.rehearse else FULL)
    every = [replace(step, limit=round(step.limit * args.patience)) for step in planned]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *other_paths()])}
    if args.rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1", "GPU_TESTS_ON_CPU": "1"}
    chosen = [step for step in every if not args.only or step.name.startswith(tuple(args.only))]
    for number, step in enumerate(folder.missing(chosen), 1):
        if time.monotonic() + step.limit > ending:
            print(f"{step.name}: left for the next start, it may take {step.limit} s", flush=True)
            continue
        print(f"{number:3} {step.name} ...", end="", flush=True)
        end = run(step, folder, environment, work)
        with folder.ends.open("a") as ends:
            ends.write(json.dumps(end) + "\n")
        folder.write_tables()
        print(f" {end['end']} in {end['seconds']:.0f} s", flush=True)
    left = folder.missing(chosen)
    print(f"{len(chosen) - len(left)} of {len(chosen)} steps are done: {folder.path / 'tables.md'}")
    return 1 if left else 0


def other_paths() -> list[str]:
    """Of the PYTHONPATH that is set: where the wheels were installed."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    sys.exit(main())
