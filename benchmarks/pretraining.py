"""Speed and memory of pretraining: llm-lightning, transformers' Trainer, litgpt, and a bare loop as the ceiling.

    python benchmarks/peers.py          # once: litgpt in an environment of its own
    python benchmarks/pretraining.py --model 9m 135m --json results.jsonl

All train the same weights on the same token ids with the same AdamW, gradient clipping and threads, which the column of
losses shows. Each measurement is a fresh process; contenders run in turns, so that a machine that drifts does not
decide, and medians are reported.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, only its own folder is on the path

from benchmarks.peers import peer_python  # noqa: E402
from benchmarks.workload import QUICK, SHAPES, Job, Shape, prepare  # noqa: E402

OURS = "llm-lightning"


@dataclass(frozen=True)
class Contender:
    """Something that trains.

    Args:
        name: as in the table and in `--only`.
        command: from the job and its JSON file to the command line.
        compile: whether torch.compile is asked for.
        quick: whether it takes part in `--quick`.
    """

    name: str
    command: Callable[[Job, Path], list[str]]
    compile: bool
    quick: bool = False


def our_command(job: Job, path: Path) -> list[str]:
    """The real command line; only data and stopwatch are the benchmark's."""
    settings = {
        "config": ROOT / "benchmarks" / "pretraining.yaml",
        "model.backbone.path": job.folder,
        "model.backbone.compile": str(job.compile).lower(),
        "data": "benchmarks.fixed_rows.FixedRows",
        "data.path": job.rows,
        "data.batch_size": job.batch_size,
        "trainer.max_steps": job.num_steps,
        "trainer.precision": job.precision,
        "trainer.accelerator": job.device,
        "trainer.devices": 1,
        "trainer.default_root_dir": job.scratch,
        "trainer.callbacks+": "benchmarks.step_timer.StepTimer",
        "trainer.callbacks.result": job.result,
        "trainer.callbacks.warmup": job.warmup,
        "trainer.callbacks.steps": job.steps,
    }
    return [sys.executable, "-m", "llm_lightning", "fit", *(f"--{key}={value}" for key, value in settings.items())]


def script(module: str, peer: str | None = None) -> Callable[[Job, Path], list[str]]:
    """A contender that reads the job's JSON, in our environment or in a peer's."""

    def command(job: Job, path: Path) -> list[str]:
        python = str(peer_python(peer)) if peer else sys.executable
        return [python, "-m", f"benchmarks.{module}", str(path)]

    return command


CONTENDERS = [
    Contender(OURS, our_command, compile=False, quick=True),
    Contender(f"{OURS}-compile", our_command, compile=True),
    Contender("transformers", script("transformers_trainer"), compile=False, quick=True),
    Contender("transformers-compile", script("transformers_trainer"), compile=True),
    Contender("litgpt", script("litgpt_pretrain", "litgpt"), compile=True),
    Contender("bare", script("bare_loop"), compile=False, quick=True),
    Contender("bare-compile", script("bare_loop"), compile=True),
]


def measure(contender: Contender, job: Job, threads: int) -> dict[str, float]:
    """Run one contender in a fresh process.

    Returns:
        `tokens_per_s`, `tokens_per_cpu_s`, `peak_memory_mb`, and the `loss` of its last step.

    Raises:
        RuntimeError: it failed; the message holds the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="pretraining-") as scratch:
        result, path = Path(scratch) / "result.json", Path(scratch) / "job.json"
        job = replace(job, scratch=f"{scratch}/run", result=str(result), compile=contender.compile)
        path.write_text(json.dumps(job.as_dict()))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if job.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        child = subprocess.run(
            contender.command(job, path), cwd=ROOT, env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if child.returncode or not result.exists():
            raise RuntimeError(f"{contender.name} failed ({child.returncode}):\n{child.stdout[-2000:]}")
        figures = json.loads(result.read_text())
    tokens = job.steps * job.batch_size * job.seq_len
    return {
        "tokens_per_s": tokens / figures["wall_s"],
        "tokens_per_cpu_s": tokens / figures["cpu_s"],
        "peak_memory_mb": figures["peak_memory_mb"],
        "loss": figures["loss"],
    }


def run_in_turns(
    contenders: Sequence[Contender], job: Job, threads: int, repeats: int
) -> tuple[dict[str, list[dict[str, float]]], list[str]]:
    """Measure A B C A B C ...; returns the figures by contender, and the names of those that failed."""
    figures: dict[str, list[dict[str, float]]] = {c.name: [] for c in contenders}
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
            print(f" {figures[contender.name][-1]['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)
    return {name: runs for name, runs in figures.items() if name not in failed}, failed


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the repeats."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(title: str, figures: dict[str, list[dict[str, float]]]) -> str:
    """Medians, the spread of the speed, and each contender against ours where ours took part."""
    header = f"{'':22}{'tokens/s':>10}{'min - max':>17}{'per CPU-s':>11}{'peak MB':>9}{'loss':>9}"
    ours = medians(figures[OURS]) if OURS in figures else None
    lines = [title, header + (f"{'ours: speed':>13}{'memory':>8}" if ours else "")]
    for name, runs in figures.items():
        m = medians(runs)
        speeds = [run["tokens_per_s"] for run in runs]
        spread = f"{min(speeds):,.0f} - {max(speeds):,.0f}"
        line = f"{name:22}{m['tokens_per_s']:>10,.0f}{spread:>17}{m['tokens_per_cpu_s']:>11,.0f}"
        line += f"{m['peak_memory_mb']:>9,.0f}{m['loss']:>9.4f}"
        if ours:
            speed, memory = (ours[key] / m[key] for key in ("tokens_per_s", "peak_memory_mb"))
            line += f"{speed:>12.2f}x{memory:>7.2f}x"
        lines.append(line)
    return "\n".join(lines)


def json_lines(
    model: str, figures: dict[str, list[dict[str, float]]], units: dict[str, str], settings: dict[str, Any]
) -> list[str]:
    """One object a metric, with all the repeats in its settings."""
    rows = []
    for name, runs in figures.items():
        for metric, value in medians(runs).items():
            row = {"benchmark": "pretraining", "contender": name, "model": model, "metric": metric, "value": value}
            row |= {"unit": units[metric], "settings": settings | {"values": [run[metric] for run in runs]}}
            rows.append(json.dumps(row))
    return rows


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


def benchmark(model: str, shape: Shape, precision: str, args: argparse.Namespace, contenders: list[Contender]) -> int:
    """One table; returns the number of contenders that failed."""
    with tempfile.TemporaryDirectory(prefix="pretraining-") as folder:
        weights, rows = prepare(Path(folder), shape)
        job = Job(
            folder=str(weights), rows=str(rows), scratch="", result="", batch_size=shape.rows, seq_len=shape.seq_len,
            warmup=shape.warmup, steps=shape.steps, precision=precision, device=args.device, compile=False,
        )  # fmt: skip
        figures, failed = run_in_turns(contenders, job, args.threads, args.repeats)
    settings = {"precision": precision, "device": args.device, "threads": args.threads, "repeats": args.repeats}
    settings |= {"rows": shape.rows, "seq_len": shape.seq_len, "steps": shape.steps} | machine(args.device)
    title = f"\n{model}, {precision}, {shape.rows} x {shape.seq_len} tokens a step, {args.threads} threads, "
    print(table(title + f"{settings['machine']}, torch {settings['torch']}", figures))
    units = {"tokens_per_s": "tokens/s", "tokens_per_cpu_s": "tokens/s", "peak_memory_mb": "MB", "loss": "nats"}
    if args.json:
        with args.json.open("a") as file:
            file.writelines(f"{line}\n" for line in json_lines(model, figures, units, settings))
    return len(failed)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in SHAPES}), default=["9m"])
    parser.add_argument("--precision", nargs="+", choices=["32-true", "bf16-mixed"], default=["32-true", "bf16-mixed"])
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CONTENDERS], metavar="NAME", help="contenders")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="under a minute: 9m, 32-true, nothing compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.precision, args.repeats = ["9m"], ["32-true"], 1
    if args.device is None:
        import torch

        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    for model in args.model:
        if (model, args.device) not in SHAPES:
            parser.error(f"--model {model} is not measured on {args.device}.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    args = parse(argv)
    names = args.only or [c.name for c in CONTENDERS if c.quick or not args.quick]
    contenders = [c for c in CONTENDERS if c.name in names]
    failures = 0
    for model in args.model:
        shape = QUICK if args.quick else SHAPES[model, args.device]
        for precision in args.precision:
            failures += benchmark(model, shape, precision, args, contenders)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
