"""How fast the ranks' network is, and how far their hosts' clocks are apart."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_lightning.preflight.meeting.exchange import Exchange

MIB = 16
"""Enough to be held up by bandwidth and not by latency, and done in a second by the slowest network that is of use."""

SLOW = 100e6
"""Bytes a second: gigabit Ethernet has 120 million, and takes a minute for the gradients of a billion parameters."""

CLOCK_BOUND_S = 1.0
"""Hosts that ask a time server are milliseconds apart. Further apart than a second, logs tell causes after effects."""


@dataclass(frozen=True)
class Speed:
    """Of an all-reduce.

    Args:
        seconds: that it took.
        bandwidth: bytes a second that each rank sent, 2 (n - 1) / n times the tensor's size.
    """

    seconds: float
    bandwidth: float

    @property
    def is_slow(self) -> bool:
        """Whether something is wrong, and not only small."""
        return self.bandwidth < SLOW


def measure_speed(exchange: Exchange) -> Speed:
    """Of the second all-reduce of some MiB: with the first one connections are opened."""
    values = torch.zeros(MIB * 2**20 // 4, device=exchange.device)
    exchange.reduce(values)
    begin = time.perf_counter()
    exchange.reduce(values)
    seconds = time.perf_counter() - begin
    share = 2 * (exchange.num_ranks - 1) / exchange.num_ranks
    return Speed(seconds, share * MIB * 2**20 / seconds)


def clocks(exchange: Exchange) -> Tensor:
    """(ranks, 2) float64: what each rank's clock showed before and after one moment that all ranks have in common.

    An all-reduce ends nowhere before it has begun everywhere: that is the moment. One before it brings the ranks
    together, so that the two readings are near each other.
    """
    number = torch.zeros(1, device=exchange.device)
    exchange.reduce(number)
    before = time.time()
    exchange.reduce(number)
    return exchange.gather(torch.tensor([before, time.time()], dtype=torch.float64))


def deviations(readings: Tensor) -> Tensor:
    """(ranks,) seconds that each clock is ahead at the least (negative: behind) of the median one.

    Args:
        readings: of `clocks`. However long the ranks waited for each other, no clock that is right deviates.
    """
    median = readings[readings.mean(1).argsort()[len(readings) // 2]]
    ahead = (readings[:, 0] - median[1]).clamp(min=0)
    behind = (median[0] - readings[:, 1]).clamp(min=0)
    return ahead - behind
