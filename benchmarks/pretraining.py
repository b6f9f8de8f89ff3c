"""Speed and memory of pretraining: llm-lightning, transformers' Trainer, litgpt, and a bare loop as the ceiling.

    python benchmarks/peers.py litgpt   # once: litgpt in an environment of its own
    python benchmarks/pretraining.py --model 9m 135m --json results.jsonl

All train the same weights on the same token ids with the same AdamW, gradient clipping and threads, which the column of
losses shows. Each measurement is a fresh process; contenders run in turns, so that a machine that drifts does not
decide, and medians are reported.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import (
    OURS,
    ROOT,
    Contender,
    Metric,
    add_arguments,
    chosen,
    chosen_device,
    compare,
    fit,
    script,
)
from benchmarks.workload import QUICK, SHAPES, Job, Shape, prepare

METRICS = [
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
    Metric("tokens_per_cpu_s", "tokens/s", "per CPU-s", 11),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
    Metric("loss", "nats", "loss", 9, ".4f"),
]


def our_command(job: Job, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    return fit(
        {
            "config": ROOT / "benchmarks" / "pretraining.yaml",
            "model.backbone.path": job.folder,
            "model.backbone.compile": str(job.compile).lower(),
            "model.backbone.activation_checkpointing": str(job.checkpointing).lower(),
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
    )


COMPILE = {"compile": True}
CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-compile", our_command, changes=COMPILE),
    Contender("transformers", script("transformers_trainer"), quick=True),
    Contender("transformers-compile", script("transformers_trainer"), changes=COMPILE),
    Contender("litgpt", script("litgpt_pretrain", "litgpt"), changes=COMPILE),
    Contender("bare", script("bare_loop"), quick=True),
    Contender("bare-compile", script("bare_loop"), changes=COMPILE),
]


def benchmark(model: str, shape: Shape, precision: str, args: argparse.Namespace) -> int:
    """One table; returns the number of contenders that failed."""
    with tempfile.TemporaryDirectory(prefix="pretraining-") as folder:
        weights, rows = prepare(Path(folder), shape)
        job = Job(
            folder=str(weights), rows=str(rows), scratch="", result="", batch_size=shape.rows, seq_len=shape.seq_len,
            warmup=shape.warmup, steps=shape.steps, precision=precision, device=args.device, compile=False,
        )  # fmt: skip
        settings = {"precision": precision, "rows": shape.rows, "seq_len": shape.seq_len, "steps": shape.steps}
        title = f"{model}, {precision}, {shape.rows} x {shape.seq_len} tokens a step"
        _, failures = compare("pretraining", model, chosen(CONTENDERS, args), job, METRICS, settings, title, args)
    return failures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in SHAPES}), default=["9m"])
    parser.add_argument("--quick", action="store_true", help="under a minute: 9m, 32-true, nothing compiled")
    add_arguments(parser, CONTENDERS)
    parser.set_defaults(precision=["32-true", "bf16-mixed"])
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.precision, args.repeats = ["9m"], ["32-true"], 1
    args.device = chosen_device(args.device)
    for model in args.model:
        if (model, args.device) not in SHAPES:
            parser.error(f"--model {model} is not measured on {args.device}.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    args = parse(argv)
    failures = 0
    for model in args.model:
        shape = QUICK if args.quick else SHAPES[model, args.device]
        for precision in args.precision:
            failures += benchmark(model, shape, precision, args)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
