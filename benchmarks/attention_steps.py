"""Attention over packed rows on CPU, forward and backward; run as `python -m benchmarks.attention_steps JOB.json`."""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

from llm_lightning.process.allocator import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.attention import AttentionJob  # noqa: E402
from benchmarks.step_clock import StepClock  # noqa: E402
from llm_lightning.models.attention import (  # noqa: E402
    Documents,
    cpu,
    document_attention,
)

LONG_DOCUMENT = {"llm-lightning": cpu.LONG_DOCUMENT, "onednn": 1, "mkl": sys.maxsize}
"""From which length on products are left to oneDNN, in multiples of itself."""


def positions(job: AttentionJob, rng: random.Random) -> Tensor:
    """(1, T) positions of a row of documents of one length, or of random ones."""
    cuts = range(job.length, job.seq_len, job.length or 1)
    if not job.length:
        cuts = sorted(rng.sample(range(1, job.seq_len), job.num_documents - 1))
    ends = [0, *cuts, job.seq_len]
    return torch.cat([torch.arange(end - start) for start, end in pairwise(ends)])[None]


def main(job: AttentionJob) -> None:
    """Make the steps and report."""
    torch.set_float32_matmul_precision("medium")
    cpu.LONG_DOCUMENT = LONG_DOCUMENT[job.products]
    dtype, rng = getattr(torch, job.dtype), random.Random(0)
    shapes = [(1, heads, job.seq_len, job.head_dim) for heads in (job.heads, job.kv_heads, job.kv_heads)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    clock = StepClock(job.result, job.warmup, job.steps)
    for _ in range(job.warmup + job.steps):
        out, _ = document_attention(None, *inputs, None, documents=Documents.of(positions(job, rng)))  # type: ignore[arg-type]
        gradients = torch.autograd.grad(out.float().square().sum(), inputs)
        clock.tick()
    clock.report(float(gradients[0].square().sum()))


if __name__ == "__main__":
    main(AttentionJob(**json.loads(Path(sys.argv[1]).read_text())))
