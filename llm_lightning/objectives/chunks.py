"""Heads and losses taken chunk by chunk, so that the logits of a whole batch never exist: how long a chunk is, and what
is done to one.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Room for one chunk's logits: near a CPU's caches, and enough to fill a GPU."""

MIN_CHUNK_TOKENS = 256
"""Below this the head's gradient, V x H, is read and written too often."""

ROUNDING = 64
"""The last chunk is padded to a multiple of this. How many tokens are trained differs from step to step, and oneDNN
keeps a kernel, and the allocator a block, for every shape they have seen: hundreds of MB after some steps."""

GRADIENT_ROWS = 4096
"""Rows of the head's gradient that a chunk adds to at a time: what it adds stays in a CPU's or a GPU's cache."""


def chunk_length(vocab_size: int, device: torch.device) -> int:
    """Tokens of a chunk of float32 logits, the same in every step."""
    room = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(MIN_CHUNK_TOKENS, room // (4 * vocab_size) // ROUNDING * ROUNDING)


def sum_dtype(weight: Tensor) -> torch.dtype:
    """For the sum over chunks: a chunk's gradient is soon less than half of the sum's last bit in bfloat16."""
    return torch.promote_types(weight.dtype, torch.float32)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, where the factors may be in a narrower dtype than the sum."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for rows, part in zip(total.split(GRADIENT_ROWS), left.split(GRADIENT_ROWS), strict=True):
        rows += part @ right


def padded(rows: Tensor) -> Tensor:
    """(N, ...) with zeros up to a multiple of `ROUNDING` rows."""
    missing = -len(rows) % ROUNDING
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def highest_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logits (N, 1) and where each is, the first of equal ones.

    On a CPU torch finds the place several times slower than the value, so that it is looked for in one block alone.
    """
    block = math.gcd(logits.shape[1], 1024)
    if logits.is_cuda or block < 64:
        return logits.max(dim=-1, keepdim=True)
    blocks = logits.unflatten(1, (-1, block))
    highest, number = blocks.amax(dim=-1).max(dim=-1, keepdim=True)
    within = blocks.take_along_dim(number[..., None], dim=1).argmax(dim=-1)
    return highest, number * block + within


def own_casts(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast without its cache: where chunks share a weight's cast, its gradient is summed in the cast's dtype."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=False)


def ready_gradients(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of the hidden states and of the head's weight, where a forward pass saved both for a loss of 1.

    In place: these buffers are the pass's own, and a loss is summed once.

    Args:
        ctx: of an autograd function that saved them, each may be None, and `weight_dtype`.
        grad_loss: () the derivative by the loss.
    """
    grad_hidden, grad_weight = ctx.saved_tensors
    return (
        None if grad_hidden is None else grad_hidden.mul_(grad_loss),
        None if grad_weight is None else grad_weight.mul_(grad_loss).to(ctx.weight_dtype),
    )
