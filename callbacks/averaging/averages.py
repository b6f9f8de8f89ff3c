"""How much the newest weights count in an average."""

from typing_extensions import override

from callbacks.averaging.callback import WeightAverage
from callbacks.errors import CallbackError


class EMA(WeightAverage):
    """The exponential moving average of the weights of all steps; see `WeightAverage` for what becomes of it.

    After the first n steps the decay is at most (1 + n) / (10 + n): the average begins with the weights of its first
    step, which would else stay in it for thousands of others. Until `decay` is reached it spans about the last ninth of
    the steps, so that short runs need no other setting.

    Args:
        decay: Share of the average that each step leaves, below 1. 0.999 averages about the last 1,000 steps; 0 is the
            weights themselves.
        start: The optimizer step from which on weights are averaged; below 1 a share of the run.

    Raises:
        CallbackError: A number is out of its range.
    """

    def __init__(self, decay: float = 0.999, start: float = 0) -> None:
        super().__init__(start)
        if not 0 <= decay < 1:
            raise CallbackError(f"EMA.decay={decay} must be at least 0 and below 1.")
        self.decay = decay

    @override
    def rate(self) -> float:
        n = self.num_averaged
        return 1 - min(self.decay, (1 + n) / (10 + n))


class SWA(WeightAverage):
    """The equal mean of the weights of every so many steps (stochastic weight averaging, arXiv:1803.05407); see
    `WeightAverage` for what becomes of it.

    The learning rate is left to the schedule. A constant one (`model.schedule.kind=constant`) is what the paper has;
    under one that ends at 0 the weights hardly differ from their mean.

    Args:
        start: The optimizer step from which on weights are averaged; below 1 a share of the run. The last quarter is
            what the paper takes.
        every_n_steps: Optimizer steps from one set of weights to the next. Those of neighbouring steps are nearly the
            same, so that to take all of them would change little.

    Raises:
        CallbackError: A number is out of its range.
    """

    def __init__(self, start: float = 0.75, every_n_steps: int = 10) -> None:
        super().__init__(start)
        if every_n_steps < 1:
            raise CallbackError(f"SWA.every_n_steps={every_n_steps} is below 1.")
        self.every_n_steps = every_n_steps

    @override
    def is_due(self, num_steps: int) -> bool:
        return num_steps % self.every_n_steps == 0

    @override
    def rate(self) -> float:
        return 1 / (self.num_averaged + 1)
