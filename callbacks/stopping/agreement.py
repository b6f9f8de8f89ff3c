"""A number that all ranks learn of at the same step, without waiting for each other."""

from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

# As long as Lightning's own for a process group; who does not answer meanwhile is named by `Heartbeat`.
_TIMEOUT = timedelta(minutes=30)


class Agreement:
    """The largest of what the ranks say at a step; all ranks get the same answer at the same later call.

    Each call sends this rank's number off in an all-reduce over gloo, on CPU, and answers with the outcome of the call
    before, which is there by now. So it costs microseconds and leaves the GPU's queue alone, while a blocking reduction
    of a tensor on the device makes the host wait for the whole step. What is said is heard of one call later.

    On one rank the answer is immediate.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if _has_peers(trainer) else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def ask(self, number: int) -> int:
        """Say `number`; the largest of what the ranks said at the call before (0 at the first one).

        Every rank must call it equally often.
        """
        if self._group is None:
            return number
        answer = self.settle()
        said = torch.tensor(number)
        work = dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, said)
        return answer

    def settle(self) -> int:
        """The outcome of the last call, which is then over."""
        if self._pending is None:
            return 0
        (work, said), self._pending = self._pending, None
        work.wait()
        return int(said)


def _has_peers(trainer: Trainer) -> bool:
    return trainer.world_size > 1 and dist.is_available() and dist.is_initialized()
