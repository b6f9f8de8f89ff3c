"""Orthogonal updates of matrices whose rows are spread over ranks."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from llm_lightning.optimizers.newton_schulz import compute_dtype, newton_schulz

MOST_ELEMENTS = 2**25
"""Of matrices that are stacked for one product: what small networks are fast by, and large ones have room for."""


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def batches(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """The numbers of tensors that `orthogonalize` takes together: of one shape and one layout, and not too many."""

    def kind(number: int) -> str:
        tensor = tensors[number]
        layout = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else tensor.device
        return f"{tuple(tensor.shape)} {tensor.dtype} {layout}"

    for _, alike in groupby(sorted(range(len(tensors)), key=kind), kind):
        numbers = list(alike)
        size = max(1, MOST_ELEMENTS // max(1, tensors[numbers[0]].numel()))
        if is_exchanged(tensors[numbers[0]]):
            size = tensors[numbers[0]].device_mesh.size()  # type: ignore[attr-defined]
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def is_whole(tensor: Tensor) -> bool:
    """Whether each of its matrices lies on one rank: of stacked ones (experts), other ranks may have others."""
    if not isinstance(tensor, DTensor) or tensor.device_mesh.size() == 1:
        return True
    return tensor.ndim > 2 and tensor.placements == (Shard(0),)


def is_exchanged(tensor: Tensor) -> bool:
    """Whether a matrix's rows lie on different ranks, and nothing else is spread."""
    return isinstance(tensor, DTensor) and not is_whole(tensor) and tensor.placements == (Shard(0),)


def orthogonalize(tensors: Sequence[Tensor], num_steps: int) -> list[Tensor]:
    """`newton_schulz` of each whole matrix; of the result this rank's part. All ranks have to call it alike.

    The iteration on a shard of a matrix would be another algorithm. So each rank gathers a matrix of its own out of a
    batch, and sends its rows back: no rank does another one's work, or holds more than one whole matrix.

    Args:
        tensors: one of `batches`.
        num_steps: of the iteration.
    """
    first = tensors[0]
    dtype = compute_dtype(first.device)
    if is_exchanged(first):
        return _exchanged(tensors, num_steps, dtype)
    if not is_whole(first):
        return [_replicated(tensor, num_steps, dtype) for tensor in tensors]
    parts = [local(tensor) for tensor in tensors]
    if not parts[0].numel():
        return parts
    stacked = parts[0][None] if len(parts) == 1 else torch.stack(parts)
    return list(newton_schulz(stacked.to(dtype), num_steps).to(first.dtype))


def _exchanged(tensors: Sequence[Tensor], num_steps: int, dtype: torch.dtype) -> list[Tensor]:
    first = tensors[0]
    assert isinstance(first, DTensor)
    group, num_ranks = first.device_mesh.get_group(), first.device_mesh.size()
    num_rows, num_columns = first.shape
    rows = -(-num_rows // num_ranks)  # of a shard: the last ones may have fewer, or none
    parts = [local(tensor) for tensor in tensors]
    sent = torch.zeros(num_ranks, rows, num_columns, dtype=dtype, device=parts[0].device)
    for slot, part in zip(sent, parts, strict=False):
        slot[: len(part)] = part
    whole = torch.empty_like(sent)
    dist.all_to_all_single(whole, sent, group=group)
    if first.device_mesh.get_local_rank() < len(tensors):
        matrix = whole.view(-1, num_columns)[:num_rows]
        matrix.copy_(newton_schulz(matrix, num_steps))
    dist.all_to_all_single(sent, whole, group=group)
    return [slot[: len(part)].to(first.dtype) for slot, part in zip(sent, parts, strict=False)]


def _replicated(tensor: Tensor, num_steps: int, dtype: torch.dtype) -> Tensor:
    """Of a layer that ranks share (tensor parallelism): each of them computes the whole matrix."""
    assert isinstance(tensor, DTensor)
    everywhere = [Replicate()] * tensor.device_mesh.ndim
    whole = tensor.redistribute(placements=everywhere).to_local()
    update = newton_schulz(whole.to(dtype), num_steps).to(tensor.dtype)
    spread = DTensor.from_local(update, tensor.device_mesh, everywhere, run_check=False)
    return spread.redistribute(placements=tensor.placements).to_local()
