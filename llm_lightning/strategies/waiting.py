"""How long a rank waits for the others."""

from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout

WAIT_FOR_RANKS = timedelta(minutes=10)
"""Where the strategy's `timeout` is not given: torch's own for NCCL. Lightning's is half an hour, in which all other
ranks would wait for one that is stuck."""


def limit_waiting(strategy: Any) -> None:
    """Give a strategy of several ranks our limit where it has Lightning's; before it starts them."""
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = WAIT_FOR_RANKS


def waits_for(strategy: Any) -> timedelta:
    """How long the ranks of a strategy wait for each other."""
    limit: timedelta = getattr(strategy, "_timeout", None) or WAIT_FOR_RANKS
    return limit
