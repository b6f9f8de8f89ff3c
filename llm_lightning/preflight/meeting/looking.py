"""Lets the ranks of a run meet, and looks at all of them before anything long begins."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch import distributed as dist

from llm_lightning.launch.checks import LaunchError, MeetingError
from llm_lightning.preflight.meeting.exchange import Exchange
from llm_lightning.preflight.meeting.network import CLOCK_BOUND_S, MIB, Speed, clocks, deviations, measure_speed
from llm_lightning.preflight.meeting.roll_call import RollCall, own_host
from llm_lightning.preflight.meeting.versions import differences, digest_of, versions_here
from llm_lightning.strategies.waiting import waits_for

HOST_BYTES = 64
SHOWN = 4
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def can_meet(strategy: Strategy) -> bool:
    """Whether there are ranks to look at, on devices whose collective operations are torch's own."""
    return isinstance(strategy, ParallelStrategy) and strategy.root_device.type in BACKENDS and strategy.world_size > 1


def meet_and_look(strategy: Any, meet: Callable[[], None]) -> None:
    """Call the roll, let the ranks join a process group, and compare them; every rank calls it.

    Args:
        strategy: one that `can_meet`, in a process that was started as a rank.
        meet: what makes the process group; it finds it made where the ranks have met before.

    Raises:
        LaunchError: the ranks run different versions.
        MeetingError: ranks are missing, or do not reach each other.
    """
    roll = None if dist.is_initialized() else _roll_of(strategy)
    if roll is None:
        meet()
    else:
        roll.answer()
        _join(roll, meet, strategy.root_device)
    look(strategy.root_device, roll)


def _join(roll: RollCall, meet: Callable[[], None], device: torch.device) -> None:
    try:
        meet()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "connectFullMesh" not in str(error):  # as gloo says it
            raise
        raise _unreachable("The ranks were all there, and made no process group", error, roll, device) from error
    roll.ready()


def look(device: torch.device, roll: RollCall | None = None) -> None:
    """Compare the ranks of the process group: their network, their versions and their clocks.

    Raises:
        LaunchError, MeetingError: as `meet_and_look`.
    """
    exchange = Exchange(device)
    try:
        speed = measure_speed(exchange)
        here = compare_versions(exchange, versions_here())
        ahead = deviations(clocks(exchange))
    except MeetingError as error:
        raise _unreachable(
            "The ranks have met, and their first all-reduce came to nothing", error, roll, device
        ) from error
    rank_zero_info(f"{here.in_words()}; {_speed_in_words(speed)}.")
    if speed.is_slow and (here.num_hosts > 1 or device.type != "cpu"):  # processes of one host wait for its cores
        name = BACKENDS[device.type].upper()
        rank_zero_warn(
            f"The network between the ranks is slow ({_speed_in_words(speed)}), and every step waits for it. Is it the "
            f"right interface ({name}_SOCKET_IFNAME)?"
        )
    if wrong := here.clocks_in_words(ahead):
        rank_zero_warn(
            f"Clocks are more than {CLOCK_BOUND_S:g} s from the median of all ranks: {wrong}. Times in logs and in W&B "
            "cannot be compared; let the hosts ask a time server (timedatectl)."
        )


@dataclass(frozen=True)
class Present:
    """Who is there, by rank.

    Args:
        digests: of their versions.
        hosts: their names.
    """

    digests: list[int] = field(repr=False)
    hosts: list[str]

    def groups(self) -> list[list[int]]:
        """The ranks that run the same, the largest group first."""
        found: dict[int, list[int]] = {}
        for rank, digest in enumerate(self.digests):
            found.setdefault(digest, []).append(rank)
        return sorted(found.values(), key=len, reverse=True)

    def named(self, ranks: Sequence[int]) -> list[str]:
        """Runs of ranks with their hosts, the first few and how many more there are."""
        words: list[str] = []
        first = 0
        for i, rank in enumerate(ranks):
            goes_on = i + 1 < len(ranks) and ranks[i + 1] == rank + 1 and self.hosts[rank + 1] == self.hosts[rank]
            if not goes_on:
                number = f"rank {rank}" if first == i else f"ranks {ranks[first]}-{rank}"
                words.append(f"{number} ({self.hosts[rank]})")
                first = i + 1
        return words if len(words) <= SHOWN else [*words[:SHOWN], f"{len(words) - SHOWN} more"]

    @property
    def num_hosts(self) -> int:
        """On so many."""
        return len(set(self.hosts))

    def in_words(self) -> str:
        """How many there are and where."""
        count = self.num_hosts
        return f"Ranks: {len(self.hosts)} on {count} host{'s' if count > 1 else ''}, of the same versions"

    def clocks_in_words(self, ahead: Tensor) -> str:
        """The hosts whose clocks are beyond the bound, each once.

        Args:
            ahead: (ranks,) seconds; see `network.deviations`.
        """
        beyond = {self.hosts[r]: s for r, s in enumerate(ahead.tolist()) if abs(s) > CLOCK_BOUND_S}
        words = [f"{host} {abs(s):.1f} s {'ahead' if s > 0 else 'behind'}" for host, s in beyond.items()]
        return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def compare_versions(exchange: Exchange, own: dict[str, str]) -> Present:
    """Find out who is there; 72 bytes of each rank. Only where digests differ one rank of each kind says the rest.

    Args:
        own: versions of this rank.

    Raises:
        LaunchError: with ranks, packages and versions. Every rank finds the same.
    """
    host = own_host().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    card = torch.frombuffer(bytearray(host + digest_of(own).to_bytes(8, "big")), dtype=torch.uint8)
    cards = [bytes(row.tolist()) for row in exchange.gather(card)]
    digests = [int.from_bytes(card[HOST_BYTES:], "big") for card in cards]
    present = Present(digests, [card[:HOST_BYTES].rstrip(b"\0").decode(errors="replace") for card in cards])
    groups = present.groups()
    if len(groups) == 1:
        return present
    told = [(present.named(ranks), _told_by(exchange, ranks[0], own)) for ranks in groups[: SHOWN + 1]]
    raise LaunchError(
        "The ranks do not run the same, so that they would not train the same network:\n"
        f"{differences(told)}\n"
        "Install the same on all hosts (--check_ranks false starts the run all the same)."
    )


def _told_by(exchange: Exchange, rank: int, own: dict[str, str]) -> dict[str, str]:
    """A rank's versions, on all ranks."""
    text = json.dumps(own).encode() if exchange.rank == rank else b""
    sizes = exchange.gather(torch.tensor([len(text)]))
    padded = text.ljust(int(sizes.max()), b" ")
    values = torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(torch.int32).to(exchange.device)
    if exchange.rank != rank:
        values.zero_()
    exchange.reduce(values)
    found: dict[str, str] = json.loads(bytes(values.tolist()))
    return found


def _roll_of(strategy: Any) -> RollCall:
    strategy.set_world_ranks()
    environment = strategy.cluster_environment
    address = environment.main_address, environment.main_port
    limit = waits_for(strategy)
    return RollCall(address, strategy.global_rank, strategy.world_size, strategy.num_processes, limit)


def _unreachable(what: str, error: Exception, roll: RollCall | None, device: torch.device) -> MeetingError:
    """What is known of ranks that came and do not reach each other."""
    if roll is not None and roll.rank and roll.first_rank_joined():
        return MeetingError("The first rank tells.", told_by_first=True)
    missing = "" if roll is None else roll.missing_from_group()
    name = BACKENDS[device.type].upper()
    who = (
        f"Without an answer: {missing}."
        if missing
        else f"All joined. Does a firewall stand between their hosts, is {name}_SOCKET_IFNAME the right interface?"
    )
    return MeetingError(f"{what}: {error}. {who}")


def _speed_in_words(speed: Speed) -> str:
    return f"an all-reduce of {MIB} MiB takes {1000 * speed.seconds:,.0f} ms ({speed.bandwidth / 1e6:,.0f} MB/s a rank)"
