"""Attention of packed documents on CPU, by where the float32 products of a document are taken from.

    python benchmarks/attention.py [--quick] [--json FILE] [--only CONTENDER ...]

- `llm-lightning`: from oneDNN for long documents of round lengths, else from MKL.
- `onednn`, `mkl`: all from one of them.

With `--dtype bfloat16` on a CPU that has tiles for it, the same of the backward pass: `onednn` takes all products in
bfloat16, `mkl` all in float32.

One row of 2,048 tokens a step, forward and backward: documents of one length, or 17 of other lengths in every step. The
memory is the process's own, some 400 MB of it before the first step.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import OURS, Contender, Metric, add_arguments, chosen, compare, script

METRICS = [
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
]
HEADS = {"9m": {"heads": 8, "kv_heads": 4, "head_dim": 32}, "135m": {"heads": 9, "kv_heads": 3, "head_dim": 64}}


@dataclass
class AttentionJob:
    """Steps of attention over one row.

    Args:
        heads, kv_heads, head_dim: of the queries, of the keys and values, and of each.
        length: tokens of each document; 0 for `num_documents` of random lengths.
        products: a contender's name, `onednn` or `mkl`.
        scratch, result: see `benchmarks.runner.Job`.
    """

    heads: int
    kv_heads: int
    head_dim: int
    length: int = 0
    num_documents: int = 17
    seq_len: int = 2048
    dtype: str = "float32"
    products: str = OURS
    warmup: int = 2
    steps: int = 30
    scratch: str = ""
    result: str = ""
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        tokens = self.steps * self.seq_len
        return {"tokens_per_s": tokens / measured["wall_s"], "peak_memory_mb": measured["peak_memory_mb"]}


CONTENDERS = [
    Contender(name, script("attention_steps"), quick=True, changes={"products": name})
    for name in (OURS, "onednn", "mkl")
]


def main() -> int:
    """Print the tables; exit code 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(HEADS), default=["9m", "135m"])
    parser.add_argument("--length", nargs="+", type=int, default=[0, 128, 512, 2048], help="0: random")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quick", action="store_true", help="9m, random lengths, one repeat")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args()
    if args.quick:
        args.model, args.length, args.repeats = ["9m"], [0], 1
    args.device, failures = "cpu", 0
    for model in args.model:
        for length in args.length:
            job = replace(AttentionJob(**HEADS[model]), length=length, dtype=args.dtype)
            title = f"{model}, " + (
                f"documents of {length} tokens" if length else f"{job.num_documents} of random lengths"
            )
            settings = {"length": length, "seq_len": job.seq_len, "steps": job.steps, "dtype": job.dtype}
            failures += compare("attention", model, chosen(CONTENDERS, args), job, METRICS, settings, title, args)[1]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
