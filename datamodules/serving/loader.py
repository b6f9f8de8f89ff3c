"""A loader whose position is one global sample index, so that a run resumes exactly where it was."""

from __future__ import annotations

import atexit
import copy
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCHES_ORDERED_AT_ONCE = 64  # numpy's cost a call, 0.3 ms, is shared by so many


class Order(Protocol):
    """Which row stands at which global sample index."""

    epoch_len: int

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row ids for (N,) int64 global sample indices."""
        ...


class _Spans:
    """(first, stop) of the global samples of each batch of all ranks, from a sample on; read anew at each iteration.

    An epoch's last batch ends with the epoch, so that it may be shorter.
    """

    def __init__(self, start: int, num_batches: int, step: int, epoch_len: int | None) -> None:
        self.start = start
        self.num_batches = num_batches
        self.step = step
        self.epoch_len = epoch_len

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.start
        for _ in range(self.num_batches):
            stop = first + self.step
            if self.epoch_len is not None:
                stop = min(stop, (first // self.epoch_len + 1) * self.epoch_len)
            yield first, stop
            first = stop


class _BatchesFrom:
    """The row ids of a rank's batches; -1 beyond the end of a batch of all ranks.

    Its `__iter__` is a generator since a DataLoader with workers calls it twice: each call must begin at the start.
    """

    def __init__(self, order: Order, spans: _Spans, batch_size: int, rank: int, at_once: int) -> None:
        self.order = order
        self.spans = spans
        self.at_once = at_once
        self.places = rank * batch_size + np.arange(batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        spans = iter(self.spans)
        while some := list(islice(spans, self.at_once)):
            firsts, stops = np.array(some).T
            samples = firsts[:, None] + self.places
            real = samples < stops[:, None]
            rows = np.full(samples.shape, -1, np.int64)
            rows[real] = self.order[samples[real]]
            yield from rows.tolist()


class ResumableLoader:
    """Iterates batches over an endless order of rows; each iteration goes on where the last one stopped.

    Batch i of rank r out of W holds the global samples [iWB + rB, iWB + rB + B), B the batch size. Rows left over at
    the end of an epoch make a batch with blank rows (-1), so that each row is read once an epoch, in equally many
    batches on each rank; a loss divided by its tokens counts no blank row. The position counts samples of all
    ranks that the trainer was *handed*, not those that workers fetched ahead. So it means the same for any number of
    workers and ranks and any batch size, and nothing else is needed to go on.

    It is not a `DataLoader` itself: Lightning takes those apart to put samplers of its own into them.

    Args:
        dataset: rows by row id.
        order: which row comes when.
        collate: makes a batch of rows.
        batch_size: B, rows a batch of one rank.
        rank, num_ranks: this process's place among those that read different data.
        num_workers: processes that read ahead; 0 reads in this one.
        position: the first global sample.
        whole_batches: rows left over at the end of an epoch begin the next one's first batch instead.
        ordered_at_once: batches whose rows are asked of the order together.
        finish: makes what is handed out of a batch and the global sample indices (B,) of its rows, in this process.

    Attributes:
        newest: the first global sample of the batch that was handed out last.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        collate: Callable[[Sequence[Any]], Any],
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        position: int = 0,
        whole_batches: bool = False,
        ordered_at_once: int = BATCHES_ORDERED_AT_ONCE,
        finish: Callable[[Any, np.ndarray], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.collate = collate
        self.batch_size = batch_size
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_workers = num_workers
        self.position = self.newest = position
        self.whole_batches = whole_batches
        self.ordered_at_once = ordered_at_once
        self.finish = finish
        self._is_renewed = False

    def __len__(self) -> int:
        """Batches of this rank in an epoch, at least one."""
        step = self.batch_size * self.num_ranks
        return max(1, self.order.epoch_len // step if self.whole_batches else -(-self.order.epoch_len // step))

    def __iter__(self) -> Iterator[Any]:
        num_batches = len(self)
        while num_batches:
            self._is_renewed = False
            for batch in self._read(num_batches):
                num_batches -= 1
                yield batch
                if self._is_renewed:
                    break

    def _read(self, num_batches: int) -> Iterator[Any]:
        epoch_len = None if self.whole_batches else self.order.epoch_len
        places = self.rank * self.batch_size + np.arange(self.batch_size)
        spans = _Spans(self.position, num_batches, self.batch_size * self.num_ranks, epoch_len)
        batches = DataLoader(
            self.dataset,
            batch_sampler=_BatchesFrom(self.order, spans, self.batch_size, self.rank, self.ordered_at_once),
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_trainer,
            # Else the DataLoader draws its seed from the global generator, and dropout depends on the workers.
            generator=torch.Generator(),
        )
        for (self.newest, self.position), batch in zip(spans, batches, strict=True):
            yield batch if self.finish is None else self.finish(batch, self.newest + places)

    def renew(self) -> None:
        """Let go what was read ahead: the order is another one from the position on."""
        self._is_renewed = True

    def again(self, dataset: Dataset, collate: Callable[[Sequence[Any]], Any], count: int) -> Iterator[Any]:
        """Other batches of the same rows: `count` of them, from the one that was handed out last.

        Args:
            dataset: what there is of each row.
            collate: makes a batch of that.
            count: may reach into the next epoch.
        """
        other = copy.copy(self)
        other.dataset, other.collate, other.num_workers, other.position = dataset, collate, 0, self.newest
        other.finish = None
        return islice(other, count)

    def next_batch(self) -> Any:
        """The batch that will be handed out next, read in this process; it is handed out all the same."""
        other = copy.copy(self)
        other.num_workers = 0
        return next(iter(other))

    def state_dict(self) -> dict[str, int]:
        """The position, after the batch that was handed out last."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there at the next iteration."""
        self.position = state["position"]


class EvaluationLoader(ResumableLoader):
    """The same rows, from the first one on, at each iteration."""

    def __iter__(self) -> Iterator[Any]:
        self.position = 0
        return super().__iter__()


def _leave_signals_to_the_trainer(_: int) -> None:
    # Schedulers and Ctrl-C signal the whole process group; a worker that dies of it takes the checkpoint with it.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    # Python ends what is left of them by SIGTERM, which they ignore, and would wait for them for ever: where an error
    # or a stop within a validation ends the process, their iterator was not closed.
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
