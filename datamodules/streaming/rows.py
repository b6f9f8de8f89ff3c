"""The rows of a stream by their numbers, and which one comes when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from datamodules.serving.collate import Row
from datamodules.serving.dataset import PackedRows
from datamodules.serving.orders.order import permute
from datamodules.storage.file_array import close_files
from datamodules.streaming.window import Window
from datamodules.streaming.windows import Windows
from datamodules.transformations.draws import Draw

ROW_BITS = 32  # of a row's number: which one of its window; the others say which window
WINDOWS_OPEN = 2  # a batch may reach into the next one


class StreamRows(Dataset[Row]):
    """The rows of the windows that are on disk; row -1 is blank.

    Args:
        folder: of the windows.
        draw: makes the version of a row that is served; None: as it is.
    """

    def __init__(self, folder: Path, draw: Draw | None = None) -> None:
        self.folder = folder
        self.draw = draw
        self._windows: dict[int, PackedRows] = {}

    def __getitem__(self, number: int) -> Row:
        if number < 0:
            return []
        window, row = number >> ROW_BITS, number & ((1 << ROW_BITS) - 1)
        pieces = self._window(window)[row]
        return pieces if self.draw is None else self.draw(pieces, time=0, number=number)

    def _window(self, number: int) -> PackedRows:
        if number not in self._windows:
            if len(self._windows) == WINDOWS_OPEN:
                del self._windows[next(iter(self._windows))]
                close_files()
            window = Window(self.folder / str(number))
            self._windows[number] = PackedRows([(window.rows, [window.shard])])
        return self._windows[number]


class StreamOrder:
    """The rows of a window in an order of its own, window after window without end.

    Args:
        windows: those in use.
        epoch_len: samples that a trainer counts as an epoch.
        behind: how many samples may still be on their way when others are asked for.
    """

    def __init__(self, windows: Windows, epoch_len: int, behind: int) -> None:
        self.windows = windows
        self.epoch_len = epoch_len
        self.behind = behind

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row numbers (-1: blank) for (N,) int64 global sample indices, which grow from call to call.

        Raises:
            DataError: the stream cannot be read.
        """
        self.windows.reach(int(samples[-1]))
        self.windows.leave(int(samples[0]) - self.behind)
        plan, rows = self.windows.plan, np.full(len(samples), -1, np.int64)
        for opened in self.windows.opened:
            first, num_rows = opened.place.sample, opened.facts["num_rows"]
            now = (samples >= first) & (samples < first + num_rows)
            places = samples[now] - first
            if plan.shuffle and len(places):
                places = permute(places, num_rows, plan.seed, opened.place.number)
            rows[now] = (opened.place.number << ROW_BITS) + places
        return rows
