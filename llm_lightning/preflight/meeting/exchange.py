"""Collective operations of all ranks that none waits for longer than it has to."""

import time

import torch
from torch import Tensor
from torch import distributed as dist

from llm_lightning.launch.checks import MeetingError

LIMIT_S = 120.0
"""NCCL opens its connections with the first operation, which takes seconds, and tens of them for a thousand ranks."""

LOOK_S = 5e-5


class Exchange:
    """Of the ranks of the process group.

    Args:
        device: of this rank.
        limit_s: seconds for each operation.
    """

    def __init__(self, device: torch.device, limit_s: float = LIMIT_S) -> None:
        self.device = device
        self.limit_s = limit_s
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()

    def reduce(self, values: Tensor) -> None:
        """Add a tensor up over all ranks, in place.

        Raises:
            MeetingError: it failed, or takes longer than it may.
        """
        self._finish(dist.all_reduce(values, async_op=True))

    def gather(self, own: Tensor) -> Tensor:
        """(ranks, *) of each rank's own (*), on the CPU.

        Raises:
            MeetingError: as `reduce`.
        """
        own = own.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.num_ranks)]
        self._finish(dist.all_gather(found, own, async_op=True))
        return torch.stack(found).cpu()

    def _finish(self, work: dist.Work | None) -> None:
        assert work is not None
        end = time.monotonic() + self.limit_s
        try:
            while not work.is_completed():
                if time.monotonic() > end:
                    raise MeetingError(f"it did not end within {self.limit_s:g} s")
                time.sleep(LOOK_S)
            work.wait()
        except MeetingError:
            raise
        except RuntimeError as error:
            raise MeetingError(f"it failed: {error}") from error
