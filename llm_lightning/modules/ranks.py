"""The processes of a run as far as sums go over them."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import Trainer
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Those with data of their own; ranks that share a layer (tensor parallelism) see the same data. By default one.

    Args:
        count: how many.
        sum: adds a tensor up over them; it gives a tensor of its own.
    """

    count: int = 1
    sum: Callable[[Tensor], Tensor] = lambda values: values

    @classmethod
    def of(cls, trainer: Trainer) -> "Ranks":
        """Those of a trainer's strategy."""
        if trainer.world_size == 1:
            return cls()
        shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        count = shares.get("num_replicas", trainer.world_size)

        def total(values: Tensor) -> Tensor:
            # Strategies add in place.
            return trainer.strategy.reduce(values.clone(), reduce_op="sum") * (count / trainer.world_size)

        return cls(count, total)
