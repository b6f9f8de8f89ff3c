"""One contender of pretraining, with its model FLOPs utilization; run as `python -m benchmarks.on_gpu.pretraining`.

The contenders are those of benchmarks/pretraining.py; `-checkpointing` recomputes activations, and `-fsdp2` shards over
the one device that there is. Weights and rows are written once, for all contenders.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_gpu.figures import append
from benchmarks.on_gpu.plan import OURS
from benchmarks.pretraining import our_command
from benchmarks.runner import Contender, measure, script
from benchmarks.workload import SHAPES, Job, prepare

WARMUP, STEPS = {"cpu": 1, "cuda": 6}, {"cpu": 2, "cuda": 20}


def fsdp2_command(job: Job, path: Path) -> list[str]:
    return [*our_command(job, path), "--trainer.strategy=fsdp2"]


COMPILE, RECOMPUTE = {"compile": True}, {"checkpointing": True}
TRAINER, BARE = script("transformers_trainer"), script("bare_loop")
CONTENDERS = [
    Contender(OURS, our_command),
    Contender(f"{OURS}-compile", our_command, changes=COMPILE),
    Contender(f"{OURS}-checkpointing", our_command, changes=RECOMPUTE),
    Contender(f"{OURS}-compile-checkpointing", our_command, changes=COMPILE | RECOMPUTE),
    Contender(f"{OURS}-fsdp2", fsdp2_command),
    Contender("transformers", TRAINER),
    Contender("transformers-compile", TRAINER, changes=COMPILE),
    Contender("bare", BARE),
    Contender("bare-compile", BARE, changes=COMPILE),
]


def job_of(args: argparse.Namespace) -> Job:
    """What all contenders of these arguments do; writes weights and rows where they are not there yet.

    Steps of all row lengths have the same tokens, so that rows are cut anew, and a model is written once.
    """
    shape, longest = SHAPES[args.model, args.device], args.longest
    config = shape.config | {"max_position_embeddings": max(longest, shape.config["max_position_embeddings"])}
    warmup, steps, rows = WARMUP[args.device], STEPS[args.device], args.rows * args.seq_len // longest
    folder = args.work / args.model
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, replace(shape, config=config, rows=rows, seq_len=longest, warmup=warmup, steps=steps))
        (folder / "done").touch()
    ids = np.load(folder / "rows.npy")
    np.save(own := folder / f"rows-{args.seq_len}.npy", ids.reshape(-1, args.seq_len))
    return Job(
        folder=str(folder / "model"), rows=str(own), scratch="", result="", batch_size=args.rows,
        seq_len=args.seq_len, warmup=warmup, steps=steps, precision=args.precision, device=args.device, compile=False,
    )  # fmt: skip


def token_flops(config: dict[str, Any], seq_len: int) -> float:
    """FLOPs a token of training, forward and backward, in rows of one document: see `TokenFlops`."""
    H, L, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    kv_share = config["num_key_value_heads"] / heads
    layer = H * H * (2 + 2 * kv_share) + 3 * H * config["intermediate_size"]
    return 6 * (L * layer + config["vocab_size"] * H) + 6 * L * H * (seq_len + 1)


def peak(device: str) -> float | None:
    """The data sheet's; None for a CPU, whose peak is nowhere said."""
    if device == "cpu":
        return None
    import torch

    from callbacks.monitoring.flops import peak_flops

    return peak_flops(torch.device(device), torch.bfloat16)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=sorted({name for name, _ in SHAPES}))
    parser.add_argument("--rows", type=int, required=True, help="a step")
    parser.add_argument("--seq_len", type=int, required=True)
    parser.add_argument("--longest", type=int, required=True, help="rows that the same weights are trained on")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for weights and rows")
    parser.add_argument("--json", type=Path, required=True, help="append one object a metric")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--contender", required=True, choices=[c.name for c in CONTENDERS])
    args = parser.parse_args()
    (contender,) = (c for c in CONTENDERS if c.name == args.contender)
    figures = measure(contender, job_of(args), threads=os.cpu_count() or 1)
    values = {
        "tokens_per_s": (figures["tokens_per_s"], "tokens/s"),
        "peak_memory_mb": (figures["peak_memory_mb"], "MB"),
        "loss": (figures["loss"], "nats"),
    }
    if (most := peak(args.device)) is not None:
        reached = figures["tokens_per_s"] * token_flops(SHAPES[args.model, args.device].config, args.seq_len)
        values["mfu"] = (reached / most, "of the peak")
    settings = {"precision": args.precision, "rows": args.rows, "seq_len": args.seq_len, "device": args.device}
    append(args.json, "pretraining", args.contender, args.model, values, **settings)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
