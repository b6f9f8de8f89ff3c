"""What the training benchmarks share: contenders in turns, each in a fresh process, medians, table and JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers import peer_python

ROOT = Path(__file__).resolve().parent.parent
OURS = "llm-lightning"
MEMORY = "peak_memory_mb"

Figures = dict[str, list[dict[str, float]]]
"""Of each contender, what each of its repeats measured."""


class Job(Protocol):
    """One measurement, a dataclass that the child process reads from a JSON file.

    `measure` fills in `scratch`, a folder for what the contender writes, and `result`, where its clock writes.
    """

    scratch: str
    result: str
    device: str

    def as_dict(self) -> dict[str, Any]: ...

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics, from what the child's clock wrote."""
        ...


@dataclass(frozen=True)
class Contender:
    """Something that does the job.

    Args:
        name: as in the table and in `--only`.
        command: from the job and its JSON file to the command line.
        quick: whether it takes part in `--quick`.
        changes: fields of the job that it has otherwise than the others.
    """

    name: str
    command: Callable[[Any, Path], list[str]]
    quick: bool = False
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Args:
        name: as in the figures and the JSON.
        unit: as in the JSON.
        title: of the column.
        width: of the column.
        format: of its numbers.
    """

    name: str
    unit: str
    title: str
    width: int
    format: str = ",.0f"


def script(module: str, peer: str | None = None) -> Callable[[Any, Path], list[str]]:
    """A contender that reads the job's JSON, in our environment or in a peer's."""

    def command(job: Any, path: Path) -> list[str]:
        python = str(peer_python(peer)) if peer else sys.executable
        return [python, "-m", f"benchmarks.{module}", str(path)]

    return command


def fit(settings: dict[str, Any]) -> list[str]:
    """Our real command line."""
    return [sys.executable, "-m", "llm_lightning", "fit", *(f"--{key}={value}" for key, value in settings.items())]


def measure(contender: Contender, job: Job, threads: int) -> dict[str, float]:
    """Run one contender in a fresh process.

    Returns:
        The job's figures.

    Raises:
        RuntimeError: it failed; the message holds the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        result, path = Path(scratch) / "result.json", Path(scratch) / "job.json"
        job = replace(job, scratch=f"{scratch}/run", result=str(result), **contender.changes)  # type: ignore[type-var]
        path.write_text(json.dumps(job.as_dict()))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment["HF_DATASETS_CACHE"] = f"{scratch}/datasets"  # nothing that an earlier run prepared
        if job.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        child = subprocess.run(
            contender.command(job, path), cwd=ROOT, env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if child.returncode or not result.exists():
            raise RuntimeError(f"{contender.name} failed ({child.returncode}):\n{child.stdout[-2000:]}")
        return job.figures(json.loads(result.read_text()))


def run_in_turns(
    contenders: Sequence[Contender], job: Job, speed: Metric, threads: int, repeats: int
) -> tuple[Figures, list[str]]:
    """Measure A B C A B C ...; returns the figures by contender, and the names of those that failed."""
    figures: Figures = {c.name: [] for c in contenders}
    failed: list[str] = []
    for turn in range(repeats):
        for contender in contenders:
            if contender.name in failed:
                continue
            print(f"  {turn + 1}/{repeats} {contender.name} ...", end="", file=sys.stderr, flush=True)
            try:
                figures[contender.name].append(measure(contender, job, threads))
            except (RuntimeError, FileNotFoundError) as error:
                print(f"\n{error}", file=sys.stderr)
                failed.append(contender.name)
                continue
            print(f" {figures[contender.name][-1][speed.name]:,.0f} {speed.unit}", file=sys.stderr)
    return {name: runs for name, runs in figures.items() if name not in failed}, failed


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the repeats."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(title: str, figures: Figures, metrics: Sequence[Metric]) -> str:
    """Medians, the spread of the speed, and each contender against ours where ours took part.

    Args:
        title: the line above.
        figures: of the contenders.
        metrics: the columns; the first one is the speed, and higher is better.
    """
    speed, *others = metrics
    header = f"{'':22}{speed.title:>{speed.width}}{'min - max':>17}"
    header += "".join(f"{metric.title:>{metric.width}}" for metric in others)
    ours = medians(figures[OURS]) if OURS in figures else None
    lines = [title, header + (f"{'ours: speed':>13}{'memory':>8}" if ours else "")]
    for name, runs in figures.items():
        m = medians(runs)
        speeds = [run[speed.name] for run in runs]
        spread = f"{min(speeds):,.0f} - {max(speeds):,.0f}"
        line = f"{name:22}{m[speed.name]:>{speed.width}{speed.format}}{spread:>17}"
        line += "".join(f"{m[metric.name]:>{metric.width}{metric.format}}" for metric in others)
        if ours:
            line += f"{ours[speed.name] / m[speed.name]:>12.2f}x{ours[MEMORY] / m[MEMORY]:>7.2f}x"
        lines.append(line)
    return "\n".join(lines)


def json_lines(
    benchmark: str, model: str, figures: Figures, metrics: Sequence[Metric], settings: dict[str, Any]
) -> list[str]:
    """One object a metric, with all the repeats in its settings."""
    rows = []
    for name, runs in figures.items():
        m = medians(runs)
        for metric in metrics:
            row = {"benchmark": benchmark, "contender": name, "model": model, "metric": metric.name}
            row |= {"value": m[metric.name], "unit": metric.unit}
            rows.append(json.dumps(row | {"settings": settings | {"values": [run[metric.name] for run in runs]}}))
    return rows


def append_run(
    path: Path | None,
    benchmark: str,
    contender: str,
    model: str,
    metric: tuple[str, float, str],
    settings: dict[str, Any],
) -> None:
    """Append a run on the CPU to the results; `metric` is its name, value and unit. No path: nothing."""
    if path is None:
        return
    name, value, unit = metric
    row = {"benchmark": benchmark, "contender": contender, "model": model, "metric": name, "value": value, "unit": unit}
    settings = settings | {"date": time.strftime("%Y-%m-%d")} | machine("cpu")
    with path.open("a") as file:
        file.write(json.dumps(row | {"settings": settings}) + "\n")


def machine(device: str) -> dict[str, str]:
    """What was measured on, with which versions."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {"machine": name, "torch": torch.__version__, "transformers": transformers.__version__}


def add_arguments(parser: argparse.ArgumentParser, contenders: Sequence[Contender]) -> None:
    """The flags that every benchmark of contenders has."""
    parser.add_argument("--precision", nargs="+", choices=["32-true", "bf16-mixed"], default=["32-true"])
    parser.add_argument("--only", nargs="+", choices=[c.name for c in contenders], metavar="NAME", help="contenders")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")


def chosen_device(named: str | None) -> str:
    """The named device, else a GPU where there is one."""
    if named is not None:
        return named
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen(contenders: Sequence[Contender], args: argparse.Namespace) -> list[Contender]:
    """Those named by `--only`, else all, or all that are quick."""
    names = args.only or [c.name for c in contenders if c.quick or not args.quick]
    return [c for c in contenders if c.name in names]


def compare(
    benchmark: str,
    model: str,
    contenders: Sequence[Contender],
    job: Job,
    metrics: Sequence[Metric],
    settings: dict[str, Any],
    title: str,
    args: argparse.Namespace,
) -> tuple[Figures, int]:
    """Measure, print one table, and append to the JSON file.

    Args:
        benchmark, model: as in the JSON.
        contenders: in the order of the table.
        job: the measurement.
        metrics: the columns, the speed first.
        settings: as in the JSON, beside those of `args` and of the machine.
        title: the beginning of the table's first line.
        args: the flags of `add_arguments`.

    Returns:
        The figures, and the number of contenders that failed.
    """
    figures, failed = run_in_turns(contenders, job, metrics[0], args.threads, args.repeats)
    settings = {"device": args.device, "threads": args.threads, "repeats": args.repeats} | settings
    settings |= machine(args.device)
    title = f"\n{title}, {args.threads} threads, {settings['machine']}, torch {settings['torch']}"
    print(table(title, figures, metrics), flush=True)
    if args.json:
        with args.json.open("a") as file:
            file.writelines(f"{line}\n" for line in json_lines(benchmark, model, figures, metrics, settings))
    return figures, len(failed)
