"""The processes that share the items of an evaluation."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import distributed

Item = TypeVar("Item")


class EvaluationRanks:
    """Those of the process group, where there is one."""

    @property
    def rank(self) -> int:
        """This process's number."""
        return distributed.get_rank() if distributed.is_initialized() else 0

    @property
    def count(self) -> int:
        """How many there are."""
        return distributed.get_world_size() if distributed.is_initialized() else 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share, a run of neighbours: they have most in common."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def gather(self, own: Any) -> list[Any]:
        """What each rank gives, on every rank; every rank calls it."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, own)
        return found

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather(None)
