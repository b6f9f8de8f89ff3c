"""Names of networks by their content: by all numbers of their weights, however many ranks share them, or by files."""

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard

from llm_lightning.models.loading.sharding import gathered, shape_of

AT_ONCE = 2**20
"""Numbers: what is worked out of them stays in a CPU's caches, and fills a GPU."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FACTORS = (-7046029254386353131, -4658895280553007687)
"""Odd numbers of 64 bits, those of splitmix64 (Steele et al., 2014)."""

READ = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model"}
"""Suffixes of the files that decide what a model folder writes."""


def files_key(model: str) -> str:
    """A hash of the files of a model folder, or of one file, that are read; of a hub id its commit."""
    path = Path(model).expanduser()
    if not path.exists():
        from transformers.utils import cached_file

        config = cached_file(model, "config.json")  # .../snapshots/COMMIT/config.json
        return f"{model}@{Path(str(config)).parent.name[:12]}"
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in READ)
    with ThreadPoolExecutor() as pool:  # hashing leaves the other threads alone
        return hashlib.blake2b(b"".join(pool.map(_digest, files)), digest_size=12).hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").digest()


def content_key(weights: Mapping[str, Any]) -> str:
    """The name. It differs where one bit of one number does, or two change places, which samples would not tell.

    Of each weight the bits of its numbers are added up modulo 2^64, each multiplied by an odd number that belongs to
    its place. Ranks that share weights add up their own parts and then these sums, so that all of them have to call it.

    Args:
        weights: a state dict, by `keep_vars` where DeepSpeed may have the weights. What is no tensor does not count.
    """
    digest, sums = hashlib.blake2b(digest_size=16), []
    for name, weight in sorted(weights.items()):
        if not isinstance(weight, Tensor):
            continue
        described = f"{name} {tuple(shape_of(weight))} {weight.dtype}\n".encode()
        digest.update(described)
        seed = int.from_bytes(hashlib.blake2b(described, digest_size=8).digest(), "little", signed=True)
        sums.append(_sum(weight, seed))
    digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _sum(weight: Tensor, seed: int) -> Tensor:
    """() int64, of the whole weight."""
    if not isinstance(weight, DTensor) or weight.placements != (Shard(0),):
        return _sum_from(0, gathered(weight), seed)
    rows = -(-weight.shape[0] // weight.device_mesh.size())  # as torch.chunk cuts them
    start = weight.device_mesh.get_local_rank() * rows * math.prod(weight.shape[1:])
    own = _sum_from(start, weight.to_local(), seed)
    return DTensor.from_local(own, weight.device_mesh, [Partial()]).full_tensor()


def _sum_from(start: int, part: Tensor, seed: int) -> Tensor:
    """() int64, of numbers whose first is at the place `start`."""
    bits = part.contiguous().flatten().view(INTEGERS[part.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for first in range(0, len(bits), AT_ONCE):
        some = bits[first : first + AT_ONCE]
        place = torch.arange(start + first, start + first + len(some), device=bits.device)
        mixed = place * FACTORS[0] + seed
        mixed = (mixed ^ (mixed >> 29)) * FACTORS[1]
        total += ((mixed | 1) * some).sum()
    return total
