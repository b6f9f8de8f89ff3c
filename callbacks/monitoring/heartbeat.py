"""Names the rank that a run hangs on, instead of waiting half an hour for a timeout that names none."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.errors import CallbackError

EXIT_CODE = 75  # EX_TEMPFAIL: another attempt may go well

END_S = 10.0
"""For the last beat; whoever holds the store may be gone, and answers nothing."""


class Heartbeat(Callback):
    """Ends a run of several ranks, with the name of the rank and its host, once one has been silent for too long.

    A thread of each rank writes a beat into the store that the ranks met at: its host, its step and a count. The first
    rank watches all others, they watch the first: one request a beat each, at any number of ranks. A rank that is
    stopped, whose host is gone or whose link is down beats no more. Long work (a validation, a checkpoint, compiling)
    does not matter to the thread.

    A rank that beats but is stuck is found by the process group's timeout (`trainer.strategy`'s `timeout`); when a
    collective operation fails, the last beats tell which ranks were behind.

    Args:
        timeout_s: Seconds of silence. Two minutes outlast a switch that restarts; gloo and NCCL would bear them too.

    Raises:
        CallbackError: `timeout_s` is below 1.
    """

    def __init__(self, timeout_s: float = 120) -> None:
        if timeout_s < 1:
            raise CallbackError(f"Heartbeat.timeout_s={timeout_s} is below 1.")
        self.timeout_s = timeout_s
        self._beats: _Beats | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._beats = _Beats(trainer.global_rank, trainer.world_size, self.timeout_s, lambda: _place(trainer))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._beats is not None and isinstance(exception, RuntimeError):
            # Who failed first has closed its connections; the others' errors name an address at best.
            _say(f"rank {trainer.global_rank} failed in {_place(trainer)}. Last heard of: {self._beats.heard()}.")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._beats is not None:
            self._beats.end()
            self._beats = None


def _place(trainer: Trainer) -> str:
    return f"step {trainer.global_step}{' (validation)' if trainer.validating else ''}"


class _Beats:
    """This rank's beats, and those of the ranks it watches.

    Args:
        rank, world_size: This rank's place.
        timeout_s: Seconds of silence until a rank counts as lost.
        place: Says where in the run this rank is.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float, place: Callable[[], str]) -> None:
        self.rank = rank
        self.timeout_s = timeout_s
        self.place = place
        self.watched = [other for other in range(world_size) if other != rank] if rank == 0 else [0]
        now = time.monotonic()
        self.last: dict[int, tuple[float, str, str]] = dict.fromkeys(self.watched, (now, "", "before its first beat"))
        self._over = threading.Event()
        # Of its own: the group's store is locked while somebody waits in it.
        self._address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self._host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        # Two threads, since the one that talks may wait for ever for an answer.
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat{target.__name__}", daemon=True)
            for target in (self._talk, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No more beats are due from this rank."""
        self._over.set()
        # Python ends a thread that comes back from C++ while the interpreter shuts down by aborting the process.
        for thread in self._threads:
            thread.join(END_S)

    def heard(self) -> str:
        """What is known of the watched ranks, the most silent ones first."""
        now = time.monotonic()
        ranks = sorted(self.last.items(), key=lambda item: item[1][0])[:8]
        return "; ".join(f"rank {rank} {where}, {now - when:.0f} s ago" for rank, (when, _, where) in ranks)

    def _talk(self) -> None:
        pause = self.timeout_s / 8
        count = 0
        store: Any = None
        while not self._over.wait(pause if count else 0):
            count += 1
            try:
                if store is None:
                    store = dist.TCPStore(
                        *self._address,
                        is_master=False,
                        wait_for_workers=False,
                        timeout=timedelta(seconds=self.timeout_s),
                    )
                store.set(_key(self.rank), json.dumps({"count": count, "where": f"on {self._host} in {self.place()}"}))
                self._listen(store)
            except (dist.DistError, RuntimeError):
                store = None  # the watch decides when that has lasted too long
        # The rank that holds the store may be gone already, which is no loss.
        if store is not None and self.rank:
            try:
                store.set(_key(self.rank), json.dumps({"count": -1, "where": "at its end"}))
            except (dist.DistError, RuntimeError):
                return

    def _listen(self, store: Any) -> None:
        keys = [_key(rank) for rank in self.watched]
        if not store.check(keys):
            return  # at the start, while some have not beaten yet
        for rank, beat in zip(self.watched, store.multi_get(keys), strict=True):
            text = beat.decode()
            if text != self.last[rank][1]:
                self.last[rank] = (time.monotonic(), text, json.loads(text)["where"])

    def _watch(self) -> None:
        last_look = time.monotonic()
        while not self._over.wait(self.timeout_s / 8):
            now = time.monotonic()
            if now - last_look > self.timeout_s / 2:
                # It is this process that was stopped: give the others' beats time to be read.
                self.last = {rank: (now, text, where) for rank, (_, text, where) in self.last.items()}
            last_look = now
            silent = [
                f"rank {rank} {where}"
                for rank, (when, text, where) in self.last.items()
                if now - when > self.timeout_s and '"count": -1' not in text
            ]
            if silent and not self._over.is_set():
                shown = "; ".join(silent[:8]) + (f"; and {len(silent) - 8} more" if len(silent) > 8 else "")
                _say(
                    f"silent for {self.timeout_s:g} s, last heard of: {shown}. Rank {self.rank} on {self._host}, in "
                    f"{self.place()}, ends the run; the same command goes on from its newest checkpoint."
                )
                os._exit(EXIT_CODE)  # the main thread may wait in a collective operation that nothing interrupts


def _key(rank: int) -> str:
    # torchrun keeps its store over restarts, and with it the beats of ranks that are gone.
    return f"llm-lightning/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _say(what: str) -> None:
    print(f"\nllm-lightning: error: Heartbeat: {what}", file=sys.stderr, flush=True)
