"""Speed and memory of distillation, llm-lightning against TRL's trainers.

    python benchmarks/peers.py trl      # once: TRL in an environment of its own
    python benchmarks/distillation_speed.py --model 9m 135m --data my.jsonl --json results.jsonl
    python benchmarks/distillation_speed.py --writes 64 --data my.jsonl --json results.jsonl

What is compared is one pass over the same records as in `benchmarks/sft.py`, with a teacher of the student's size
beside it and nothing but the divergence in the loss, over the whole vocabulary and at temperature 1: forward KL on the
records' replies, or with --writes reverse KL on replies of so many tokens that the student writes itself.

- `llm-lightning`: the real command line; `-cached`: the teacher's 32 likeliest tokens from the disk. They are computed
  before training and not in the time.
- `trl`: its defaults, which are bf16 and gradient checkpointing, whatever --precision says; `trl-tuned`: without
  checkpointing, in the precision of the table. On given replies this is its GKDTrainer with `lmbda=0`, on the student's
  own the DistillationTrainer.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.distillation_workload import DistillationJob
from benchmarks.runner import OURS, Contender, add_arguments, chosen, chosen_device, compare, script
from benchmarks.sft import METRICS, differences, of_data
from benchmarks.sft import our_command as sft_command
from benchmarks.sft_workload import EMBEDDED, SFT_QUICK, SFT_SHAPES, enough, prepare, write_pairs
from benchmarks.workload import Shape


def our_command(job: DistillationJob, path: Path) -> list[str]:
    """Fine-tuning's, with a teacher."""
    settings: dict[str, Any] = {
        "model": "Distillation",
        "model.teacher.path": job.teacher,
        "model.teacher_logprobs": "cached" if job.cached else "live",
        "model.objective.kind": "reverse_kl" if job.writes else "forward_kl",
        "model.objective.labels_weight": 0.0,
    }
    if job.writes:
        settings |= {"model.on_policy_share": 1.0, "model.sampling.max_new_tokens": job.writes}
    return [*sft_command(job, path), *(f"--{name}={value}" for name, value in settings.items())]


CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-cached", our_command, quick=True, changes={"cached": True}),
    Contender("trl", script("trl_distillation", "trl"), changes={"setting": "default"}),
    Contender("trl-tuned", script("trl_distillation", "trl"), quick=True, changes={"setting": "tuned"}),
]


def write_teacher(folder: Path, student: Path) -> Path:
    """A network like the student, with other weights and its tokenizer."""
    network = AutoModelForCausalLM.from_pretrained(student)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += torch.randn_like(weight) * 0.1 * weight.std()
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return folder


def benchmark(model: str, data: str, shape: Shape, args: argparse.Namespace) -> int:
    """One table for each precision; returns the number of contenders that failed."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="distillation-") as folder:
        prepared = prepare(Path(folder), data, shape, args.weights)
        teacher = write_teacher(Path(folder) / "teacher", prepared.folder)
        records = Path(folder) / "records.jsonl"
        tokens_per_step = shape.rows * shape.seq_len
        indices = list(enough(prepared.lengths, tokens_per_step * (shape.warmup + shape.steps)))
        write_pairs(records, [prepared.pairs[index] for index in indices])
        properties = of_data(data, prepared, indices)
        batch_size = max(1, round(tokens_per_step / properties["mean_record_tokens"]))
        contenders = [one for one in chosen(CONTENDERS, args) if not (args.writes and one.changes.get("cached"))]
        for precision in args.precision:
            job = DistillationJob(
                folder=str(prepared.folder), teacher=str(teacher), records=str(records), scratch="", result="",
                rows=shape.rows, seq_len=shape.seq_len, batch_size=batch_size, warmup=shape.warmup, method="full",
                precision=precision, device=args.device, writes=args.writes,
            )  # fmt: skip
            settings = {"precision": precision, "rows": shape.rows, "seq_len": shape.seq_len, "writes": args.writes}
            settings |= {"batch_size": batch_size} | properties
            name = args.weights.name if args.weights else model
            title = f"{name}, {precision}, {len(indices)} records of {properties['data']}"
            title += f", the student writes {args.writes} tokens to each" if args.writes else ""
            figures, failed = compare("distillation", name, contenders, job, METRICS, settings, title, args)
            failures += failed
            for difference in differences(figures):
                print(difference)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=["9m", "135m"], default=["9m"])
    parser.add_argument("--data", default=EMBEDDED, metavar="FILE", help=f"default: {EMBEDDED}, embedded")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="train this model, in --model's steps")
    parser.add_argument("--writes", type=int, default=0, metavar="TOKENS", help="that the student writes to a prompt")
    parser.add_argument("--quick", action="store_true", help="about two minutes: 9m, without TRL's defaults")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.precision, args.repeats = ["9m"], ["32-true"], 1
    args.device = chosen_device(args.device)
    args.weights = args.weights and args.weights.resolve()  # contenders run in another folder
    failures = 0
    for model in args.model:
        shape = SFT_QUICK if args.quick else SFT_SHAPES[model, args.device]
        if args.writes:  # a reply of the student's own needs positions behind the row
            shape = dataclasses.replace(shape, rows=2 * shape.rows, seq_len=shape.seq_len // 2)
        failures += benchmark(model, args.data, shape, args)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
