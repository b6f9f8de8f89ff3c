"""When a run should end before its last step: conditions, of which `StopWhen` asks several at once."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from callbacks.errors import CallbackError

Mode = Literal["min", "max"]
Unit = Literal["validations", "steps", "tokens"]

TOKENS = "tokens"  # the metric in which modules count the trained tokens


@dataclass(frozen=True)
class Moment:
    """Where a run stands; the same on every rank.

    Attributes:
        step: Optimizer steps done.
        seconds: Time spent training, over all attempts.
        metrics: What the asked conditions watch. A training metric is NaN where the step was left out.
    """

    step: int
    seconds: float
    metrics: dict[str, float]


@dataclass
class StopCondition(ABC):
    """One reason to stop.

    Its settings are the dataclass' fields; what it remembers are fields with `init=False`, builtins all, and goes into
    the checkpoint. A metric whose name begins with `train` is looked at after every optimizer step, any other one
    after every validation.
    """

    @abstractmethod
    def check(self, moment: Moment) -> str | None:
        """Take in what was measured; the reason to stop in words, if there is one."""

    @property
    def watched(self) -> list[str]:
        """Names of the metrics that it looks at."""
        return [self.monitor] if hasattr(self, "monitor") else []

    @property
    def follows_steps(self) -> bool:
        """Whether it is asked after every optimizer step, else after every validation."""
        return all(map(is_of_training, self.watched))

    @property
    def name(self) -> str:
        """Tells it from others in the checkpoint; under another metric or unit, what it remembers means nothing."""
        what = [getattr(self, setting) for setting in ("monitor", "mode", "unit") if hasattr(self, setting)]
        return " ".join([type(self).__name__, *what])

    def settings(self) -> dict[str, Any]:
        """The values of its arguments, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers of earlier metrics, for a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self) if not each.init}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what another one remembered."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def require(self, fits: bool, setting: str, what: str) -> None:
        """Raise `CallbackError` where a setting does not fit."""
        if not fits:
            raise CallbackError(f"{type(self).__name__}.{setting}: {getattr(self, setting)!r} {what}.")


def is_of_training(metric: str) -> bool:
    """Whether a metric is measured at every step."""
    return metric.startswith("train") or metric == TOKENS


@dataclass
class NoImprovement(StopCondition):
    """A metric that no longer gets better.

    Args:
        monitor: The metric.
        mode: Whether a smaller (`min`) or a larger (`max`) value is better.
        patience: How long to wait for the next improvement. Three validations outlast the noise of one or two.
        unit: What `patience` counts: `validations`, or the optimizer `steps` or trained `tokens` since the best value,
            which stay comparable when the interval of validations or the batch size changes. Either way it is asked
            when the metric is measured.
        min_delta: What counts as an improvement must be better than the best value by more than this.
        relative: `min_delta` is a share of the best value: 0.01 asks for a hundredth.
        smoothing: Weight of the past in a running mean that takes the metric's place, 0 for none. 0.9 looks back over
            some ten measurements; losses of single steps need it.

    Raises:
        CallbackError: A setting is out of its range, or `patience` counts validations of a metric of training.
    """

    monitor: str = "val/loss"
    mode: Mode = "min"
    patience: int = 3
    unit: Unit = "validations"
    min_delta: float = 0.0
    relative: bool = False
    smoothing: float = 0.0
    best: float | None = field(default=None, init=False)
    best_step: int = field(default=0, init=False)
    since: float | None = field(default=None, init=False)  # in units: when the wait began
    num_checks: int = field(default=0, init=False)
    average: float = field(default=0.0, init=False)
    weight: float = field(default=0.0, init=False)  # of all that is in the average

    def __post_init__(self) -> None:
        self.require(self.patience >= 1, "patience", "is below 1")
        self.require(0 <= self.min_delta < math.inf, "min_delta", "is negative or no number")
        self.require(
            not self.relative or self.min_delta < 1, "min_delta", "is no share (relative: true); use 0.01 or so"
        )
        self.require(0 <= self.smoothing < 1, "smoothing", "must be 0 or more, and below 1")
        in_validations = self.unit == "validations" and is_of_training(self.monitor)
        self.require(not in_validations, "unit", f"cannot count for {self.monitor!r}; use steps or tokens")

    @property
    def watched(self) -> list[str]:
        """Its metric, and the tokens that it counts."""
        return [self.monitor, *([TOKENS] if self.unit == "tokens" else [])]

    def check(self, moment: Moment) -> str | None:
        """The reason, once the patience is over."""
        self.num_checks += 1
        counts = {"validations": self.num_checks, "steps": moment.step, "tokens": moment.metrics.get(TOKENS, 0)}
        now = counts[self.unit]
        value = self._smoothed(moment.metrics[self.monitor])
        if self._improves(value):
            self.best, self.best_step, self.since = value, moment.step, now
        self.since = now if self.since is None else self.since
        waited = now - self.since
        if waited < self.patience:
            return None
        by = f" by more than {self.min_delta:.4g}{' of it' if self.relative else ''}" if self.min_delta else ""
        best = "not been a number" if self.best is None else f"not improved on {self.best:.4g} (step {self.best_step})"
        return f"{self.monitor} has {best}{by} for {waited:,.0f} {self.unit} (patience {self.patience:,})"

    def forget_best(self) -> None:
        """Begin anew, patience included: the network was pruned, and earlier values say nothing about what is left."""
        self.best, self.since = None, None
        self.average, self.weight = 0.0, 0.0

    def _smoothed(self, value: float) -> float:
        """The running mean without its bias to zero, as in Adam; a value that is no number stays out of it."""
        if not math.isfinite(value):
            return math.nan
        self.average = self.smoothing * self.average + (1 - self.smoothing) * value
        self.weight = self.smoothing * self.weight + (1 - self.smoothing)
        return self.average / self.weight

    def _improves(self, value: float) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        margin = self.min_delta * (abs(self.best) if self.relative else 1)
        return self.best - value > margin if self.mode == "min" else value - self.best > margin


@dataclass
class Divergence(StopCondition):
    """A metric that stays beyond a band around its own running mean.

    What lies beyond the band does not move it. A lone spike, from which most runs recover, passes.

    Args:
        monitor: The metric.
        mode: `min` where the metric should fall (a value above the band is a spike), `max` where it should rise.
        patience: Measurements in a row beyond the band.
        window: Measurements that the mean and the deviation look back over, and that are taken in before any is judged.
        num_deviations: Half the band's width in standard deviations. 6 is beyond what noise reaches.
        min_rise: The least half of it, as a share of the mean, so that a smooth curve is not stopped for a ripple.

    Raises:
        CallbackError: A setting is out of its range.
    """

    monitor: str = "train/loss"
    mode: Mode = "min"
    patience: int = 10
    window: int = 100
    num_deviations: float = 6.0
    min_rise: float = 0.1
    mean: float = field(default=0.0, init=False)
    variance: float = field(default=0.0, init=False)
    num_seen: int = field(default=0, init=False)
    num_beyond: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.require(self.patience >= 1, "patience", "is below 1")
        self.require(self.window >= 2, "window", "is below 2")
        self.require(0 < self.num_deviations < math.inf, "num_deviations", "is not above 0")
        self.require(0 <= self.min_rise < math.inf, "min_rise", "is negative or no number")

    def check(self, moment: Moment) -> str | None:
        """The reason, once enough values in a row lie beyond the band; `NotFinite` sees to those that are none."""
        value = moment.metrics[self.monitor]
        if not math.isfinite(value):
            return None
        sign = 1 if self.mode == "min" else -1
        reach = max(self.num_deviations * math.sqrt(self.variance), self.min_rise * abs(self.mean))
        if self.num_seen >= self.window and sign * (value - self.mean) > reach:
            self.num_beyond += 1
        else:
            self.num_beyond = 0
            self._take_in(value)
        if self.num_beyond < self.patience:
            return None
        side, edge = ("above" if self.mode == "min" else "below"), self.mean + sign * reach
        return (
            f"{self.monitor} has diverged: {self.num_beyond} values in a row {side} {edge:.4g}, the last {value:.4g} "
            f"(running mean {self.mean:.4g})"
        )

    def _take_in(self, value: float) -> None:
        """Welford's update with a rate that forgets; the plain mean and variance until the window is full."""
        self.num_seen += 1
        rate = 1 / min(self.num_seen, self.window)
        difference = value - self.mean
        self.mean += rate * difference
        self.variance = (1 - rate) * (self.variance + rate * difference**2)


@dataclass
class NotFinite(StopCondition):
    """A metric that is NaN or infinite several times in a row; a step that was left out for that counts.

    Args:
        monitor: The metric.
        patience: Measurements in a row. Single bad steps happen in float16; three do not pass by themselves.

    Raises:
        CallbackError: `patience` is below 1.
    """

    monitor: str = "train/loss"
    patience: int = 3
    num_bad: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.require(self.patience >= 1, "patience", "is below 1")

    def check(self, moment: Moment) -> str | None:
        """The reason, once there are enough in a row."""
        self.num_bad = 0 if math.isfinite(moment.metrics[self.monitor]) else self.num_bad + 1
        return f"{self.monitor} was not finite {self.num_bad} times in a row" if self.num_bad >= self.patience else None


@dataclass
class Target(StopCondition):
    """A metric that is good enough.

    Args:
        value: Good enough.
        monitor: The metric.
        mode: Whether a smaller (`min`) or a larger (`max`) value is better.

    Raises:
        CallbackError: `value` is no finite number.
    """

    value: float
    monitor: str = "val/loss"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        self.require(math.isfinite(self.value), "value", "can never be reached")

    def check(self, moment: Moment) -> str | None:
        """The reason, once the value is reached."""
        found = moment.metrics[self.monitor]
        reached = found <= self.value if self.mode == "min" else found >= self.value
        return f"{self.monitor} reached {found:.4g} (target {self.value:.4g})" if reached else None


@dataclass
class Budget(StopCondition):
    """What the run may use at most, over all its attempts.

    Args:
        hours: Of training, with its validations and checkpoints. It ends after the step in which they are over.
        tokens: Trained tokens, of all ranks.

    Raises:
        CallbackError: Neither is given, or one is not above 0.
    """

    hours: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        self.require(self.hours is not None or self.tokens is not None, "hours", "and tokens: neither is given")
        self.require(self.hours is None or self.hours > 0, "hours", "is not above 0")
        self.require(self.tokens is None or self.tokens > 0, "tokens", "is not above 0")

    @property
    def watched(self) -> list[str]:
        """The tokens, where they are limited."""
        return [] if self.tokens is None else [TOKENS]

    def check(self, moment: Moment) -> str | None:
        """The reason, once one of them is used up."""
        if self.tokens is not None and moment.metrics[TOKENS] >= self.tokens:
            return f"the budget of {self.tokens:,} tokens is used up"
        if self.hours is not None and moment.seconds >= 3600 * self.hours:
            return f"the budget of {self.hours:.4g} hours is used up"
        return None
