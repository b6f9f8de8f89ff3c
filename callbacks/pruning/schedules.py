"""How much of the pruning is done at each moment of a run."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Literal, Self

from typing_extensions import override

from callbacks.errors import CallbackError


class PruningSchedule(ABC):
    """From `begin` to `end` the pruned share grows to the structure's target; then the masks stay (recovery).

    Args:
        begin: until here nothing is pruned. Below 1 a share of the run, else a number of `unit`s.
        end: from here the masks stay, and the run goes on to recover; as `begin`. A third of the run is what most
            published recipes leave for it.
        interval: between two changes of the masks; as `begin`. A change costs about a step.
        unit: what is counted: optimizer `steps`, or trained `tokens` (the module's `tokens_seen`).

    Raises:
        CallbackError: `begin` is not before `end`, or a share of the run is given in tokens.
    """

    holds_weights = False
    """Whether the steps before `end` only measure and prune, and train nothing."""

    def __init__(
        self,
        begin: float = 0.1,
        end: float = 0.7,
        interval: float = 0.02,
        unit: Literal["steps", "tokens"] = "steps",
    ) -> None:
        self.begin, self.end, self.interval, self.unit = begin, end, interval, unit
        name = type(self).__name__
        if begin < 0 or interval <= 0:
            raise CallbackError(f"{name}: begin={begin} must not be negative, and interval={interval} be above 0.")
        if (begin < 1) == (end < 1) and begin > end:
            raise CallbackError(f"{name}: begin={begin} is after end={end}.")
        if unit == "tokens" and any(0 < value < 1 for value in (begin, end, interval)):
            raise CallbackError(f"{name}: with unit=tokens, begin, end and interval are numbers of tokens, not shares.")

    def resolve(self, total: float, is_rehearsal: bool = False) -> Self:
        """The schedule with numbers for shares of the run.

        Args:
            total: steps of the run, which may be infinite.
            is_rehearsal: whether the run is cut short on purpose, and may end before the schedule.

        Raises:
            CallbackError: a share of an endless run, or a schedule that does not fit the run.
        """
        name, plan = type(self).__name__, copy.copy(self)
        for key in ("begin", "end", "interval"):
            value = getattr(self, key)
            if not 0 < value < 1:
                continue
            if total == float("inf"):
                raise CallbackError(f"{name}.{key}={value} is a share of a run without end: give a number of steps.")
            # The epsilon: 0.7 of 10 is 7, whatever floats make of it.
            setattr(plan, key, max(int(value * total + 1e-9), 1 if key == "interval" else 0))
        if plan.begin > plan.end:
            raise CallbackError(f"{name}: begin={plan.begin} is after end={plan.end}, in {self.unit}.")
        if self.unit == "steps" and plan.end > total and not is_rehearsal:
            raise CallbackError(f"{name}: end={plan.end} is after the run's last step, {total:,.0f}.")
        return plan

    def is_due(self, before: float, now: float) -> bool:
        """Whether the masks change between two moments, counted in units; `now` is of them, `before` is not."""
        if now < self.begin or before >= self.end:
            return False
        if before < self.begin or now >= self.end:
            return True
        return (now - self.begin) // self.interval > (before - self.begin) // self.interval

    def fraction(self, now: float) -> float:
        """Share of the whole pruning, 0 to 1, that is to be done at a moment."""
        if now < self.begin:
            return 0.0
        if now >= self.end:
            return 1.0
        return self.curve((now - self.begin) / (self.end - self.begin))

    @abstractmethod
    def curve(self, progress: float) -> float:
        """Share of the whole pruning at a share of the way from `begin` to `end`."""


class Cubic(PruningSchedule):
    """Fast while there is much to spare, slow at the end (Zhu & Gupta, arXiv:1710.01878, from sparsity 0)."""

    def curve(self, progress: float) -> float:
        """1 - (1 - progress)^3."""
        return 1 - (1 - progress) ** 3


class Linear(PruningSchedule):
    """The same number of weights at each change."""

    def curve(self, progress: float) -> float:
        """Rises in proportion to progress."""
        return progress


class Constant(PruningSchedule):
    """All at once at `begin`; before and after it the run trains.

    Args:
        begin: as for `PruningSchedule`.
        unit: as for `PruningSchedule`.
    """

    def __init__(self, begin: float = 0.1, unit: Literal["steps", "tokens"] = "steps") -> None:
        super().__init__(begin, begin, 1, unit)

    def curve(self, progress: float) -> float:
        """All at once, from the beginning."""
        return 1.0


class Regrow(PruningSchedule):
    """All at `begin`, and then other weights: sparse training, whose number of weights stays (RigL, arXiv:1911.11134).

    At each change the weights of least worth go, by the criterion, and as many of those that are pruned come back, at
    zero: those with the largest gradients of that step. Fewer each time, by half a cosine down to none at `end`. For a
    network from scratch, or for long training behind a pruning.

    Args:
        begin: as for `PruningSchedule`; the steps before are dense.
        end: as for `PruningSchedule`; the paper's.
        interval: as for `PruningSchedule`; the paper's 100 steps.
        share: of the kept weights of each matrix, that the first change exchanges; the paper's.

    Raises:
        CallbackError: `share` is not between 0 and 1.
    """

    def __init__(self, begin: float = 1, end: float = 0.75, interval: float = 100, share: float = 0.3) -> None:
        super().__init__(begin, end, interval)
        if not 0 < share < 1:
            raise CallbackError(f"Regrow.share={share} must be above 0 and below 1.")
        self.share = share

    def curve(self, progress: float) -> float:
        """All, from the beginning."""
        return 1.0

    def exchanged(self, now: float) -> float:
        """Share of the kept weights that a change exchanges."""
        if not self.begin < now < self.end:
            return 0.0
        return self.share / 2 * (1 + math.cos(math.pi * (now - self.begin) / (self.end - self.begin)))


class OneShot(Linear):
    """All by a step, from the weights that the run began with: until then nothing is trained, only measured and pruned.

    It goes there in eight parts, from the first blocks of the network to the last where each weight can be judged by
    itself: a block then sees the activations that the pruned ones before it have left, as in the papers, and without a
    second pass over the data. Structures that weigh the whole network prune an eighth of it all each time. What comes
    after `end` is recovery training; where the run ends there, nothing was trained.

    Args:
        end: as for `PruningSchedule`. 16 batches are enough for the norms of activations.
        unit: as for `PruningSchedule`.

    Raises:
        CallbackError: `end` is not above 0.
    """

    holds_weights = True
    PARTS = 8

    def __init__(self, end: float = 16, unit: Literal["steps", "tokens"] = "steps") -> None:
        super().__init__(0, end, 1, unit)
        if end == 0:
            raise CallbackError("OneShot.end=0 leaves no step to measure activations in: give it 16.")

    @override
    def resolve(self, total: float, is_rehearsal: bool = False) -> Self:
        """In fractions of whole units."""
        plan = super().resolve(total, is_rehearsal)
        plan.end = max(plan.end, 1)
        plan.interval = max(plan.end // self.PARTS, 1)
        return plan
