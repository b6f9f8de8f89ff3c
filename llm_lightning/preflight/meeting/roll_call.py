"""Who has come: a missing rank is named before a process group waits for it, where torch would name none."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed as dist

from llm_lightning.launch.checks import MeetingError

FIRST_LOOK_S, LOOK_S = 0.02, 0.5
TELL_AFTER_S = 30.0
"""Ranks of one job seldom start further apart; from then on it is said who is waited for."""

READ_S = 5.0
"""The first rank holds the store: it stays for so long until all others have read why the run ends."""

HERE, READY, VERDICT, READ = "here", "ready", "verdict", "read"
SHOWN = 8


def own_host() -> str:
    """The name of this machine, as SLURM has it where it runs."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class RollCall:
    """The ranks of a run, as a store of their own at the address where the process group will meet.

    Every rank leaves its host there, and waits for the first one, which looks for all. At a thousand ranks that is a
    thousand small requests, and as many that wait for one key.

    Args:
        address: host and port of the first rank.
        rank, world_size: this rank's place.
        ranks_per_node: to say on which node a missing rank should have been.
        limit: how long to wait for the last one.
    """

    def __init__(
        self, address: tuple[str, int], rank: int, world_size: int, ranks_per_node: int, limit: timedelta
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.ranks_per_node = ranks_per_node
        self.limit = limit
        # torchrun holds the store itself; else torch will share the one that the first rank opens here.
        opens = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = dist.TCPStore(*address, is_master=opens, wait_for_workers=False, multi_tenant=True, timeout=limit)
        # torchrun keeps its store over restarts, and with it who was there before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"llm-lightning/roll-call/{attempt}", store)

    def answer(self) -> None:
        """Say that this rank is here, and wait for all others.

        Raises:
            MeetingError: with the ranks that did not come, or without, as the first rank says it.
        """
        self._store.set(f"{HERE}/{self.rank}", own_host())
        if self.rank:
            self._hear_verdict()
            return
        absent = self._wait_for_all()
        self._store.set(VERDICT, str(len(absent)))
        if absent:
            others = self.world_size - 1 - len(absent)
            _wait_until(lambda: self._store.add(READ, 0) >= others, READ_S)
            raise MeetingError(
                f"{len(absent)} of {self.world_size} ranks did not come within {self.limit.total_seconds():g} s: "
                f"{self._named(absent)}. Look at their output and at their hosts; the time is the strategy's `timeout`."
            )

    def ready(self) -> None:
        """Note that this rank has joined the process group."""
        self._store.set(f"{READY}/{self.rank}", "")

    def missing_from_group(self) -> str:
        """The ranks that were here and did not join, in words; empty where all did."""
        absent = self._absent(READY, range(self.world_size))
        return self._named(absent) if absent else ""

    def first_rank_joined(self) -> bool:
        """Whether the first rank has, which then tells of the others."""
        return self._store.check([f"{READY}/0"])

    def _hear_verdict(self) -> None:
        try:
            self._store.wait([VERDICT], self.limit + timedelta(seconds=READ_S))
            if self._store.get(VERDICT) == b"0":
                return
            self._store.add(READ, 1)
        except dist.DistError as error:
            raise MeetingError(f"Rank {self.rank} on {own_host()} lost the first rank while it waited.") from error
        raise MeetingError("Ranks are missing.", told_by_first=True)

    def _wait_for_all(self) -> list[int]:
        begin, told = time.monotonic(), time.monotonic() + TELL_AFTER_S
        absent, pause = list(range(1, self.world_size)), FIRST_LOOK_S
        while (absent := self._absent(HERE, absent)) and time.monotonic() - begin < self.limit.total_seconds():
            if time.monotonic() > told:
                rank_zero_info(f"Waiting for {self._named(absent)}, for {time.monotonic() - begin:.0f} s.")
                told += 2 * TELL_AFTER_S
            time.sleep(pause)
            pause = min(2 * pause, LOOK_S)
        return absent

    def _absent(self, key: str, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if not self._store.check([f"{key}/{rank}"])]

    def _named(self, ranks: Sequence[int]) -> str:
        words = [f"rank {rank} ({self._place(rank)})" for rank in ranks[:SHOWN]]
        rest = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
        return ", ".join(words) + rest

    def _place(self, rank: int) -> str:
        """The host where a rank is, or should be, as itself or another one of its node told."""
        node = rank // self.ranks_per_node
        first = node * self.ranks_per_node
        for other in (rank, *range(first, min(first + self.ranks_per_node, self.world_size))):
            if self._store.check([key := f"{HERE}/{other}"]):
                return self._store.get(key).decode()
        return f"node {node}, of which none came"


def _wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(FIRST_LOOK_S)
