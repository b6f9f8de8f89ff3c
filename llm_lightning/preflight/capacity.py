"""How much memory a rank has."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of version 2 and 1


@dataclass(frozen=True)
class Capacity:
    """Of a rank.

    Args:
        total: bytes that it can have at most.
        free: bytes that nothing else takes now.
        where: in words.
    """

    total: int
    free: int
    where: str


def capacity_of(device: torch.device, local_ranks: int) -> Capacity:
    """A GPU's memory, or this rank's share of the machine's.

    Args:
        device: the rank's own.
        local_ranks: of this machine, which share the memory where the device is a CPU.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(total, free, f"the memory of {device} ({torch.cuda.get_device_name(device)})")
    memory = psutil.virtual_memory()
    total = min([memory.total, *_container_limits()])
    share = f", shared by {local_ranks} ranks" if local_ranks > 1 else ""
    return Capacity(total // local_ranks, min(memory.available, total) // local_ranks, f"this machine's memory{share}")


def _container_limits() -> list[int]:
    words = [path.read_text().strip() for name in LIMITS if (path := CGROUP / name).is_file()]
    return [int(word) for word in words if word.isdigit()]


def gib(size: float) -> str:
    """Bytes in words: GiB, or MiB where they are few."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
