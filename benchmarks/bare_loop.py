"""The ceiling: a bare PyTorch loop around the transformers network, with every trick that makes it faster here.

Run as `python -m benchmarks.bare_loop JOB.json`. It checkpoints nothing, logs nothing, and knows one document a row.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llm_lightning.process.allocator import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AttentionInterface, AutoModelForCausalLM  # noqa: E402

from benchmarks.fixed_rows import Rows  # noqa: E402
from benchmarks.step_clock import StepClock  # noqa: E402
from benchmarks.workload import Job  # noqa: E402
from llm_lightning.run.precision import use_fast_float32  # noqa: E402


def fast_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal SDPA; query (B, heads, T, D), key and value (B, KV heads, T, D) to (B, T, heads, D).

    On CPUs without AMX the kernel is faster in float32 than in bfloat16, and faster on contiguous tensors than on the
    strides that the compiler would hand it, so that the copies pay.
    """
    dtype = value.dtype
    on_cpu = query.device.type == "cpu"
    if on_cpu and not torch.cpu.get_capabilities().get("amx_bf16"):
        query, key, value = query.float(), key.float(), value.float()
    else:  # rotary embeddings leave queries and keys in float32
        query, key = query.to(dtype), key.to(dtype)
    if on_cpu:
        query, key, value = (x.clone(memory_format=torch.contiguous_format) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.to(dtype).transpose(1, 2).contiguous(), None


def main(job: Job) -> None:
    """Train `job.num_steps` steps and report."""
    if job.device == "cpu":
        use_fast_float32()
    AttentionInterface.register("fast", fast_attention)
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation="fast")
    model.to(job.device).train()
    options = job.optimizer | {"betas": tuple(job.optimizer["betas"])}
    optimizer = torch.optim.AdamW(model.parameters(), **options, fused=True)
    clock = StepClock(job.result, job.warmup, job.steps, job.device)
    autocast = torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16-mixed")

    def compute_loss(ids: Tensor) -> Tensor:
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(states[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    if job.compile:
        compute_loss = torch.compile(compute_loss, dynamic=False)
    for _, batch in zip(range(job.num_steps), DataLoader(Rows(job.rows), batch_size=job.batch_size), strict=False):
        with autocast:
            loss = compute_loss(batch["input_ids"].to(job.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), job.max_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    clock.report(loss.item())


if __name__ == "__main__":
    main(Job(**json.loads(Path(sys.argv[1]).read_text())))
