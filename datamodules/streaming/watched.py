"""Text for pretraining that comes while the run trains: the files of a folder, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.errors import DataError
from datamodules.filters import TextFilter
from datamodules.serving.loader import ResumableLoader
from datamodules.sources.bad_records import OnBadRecord
from datamodules.sources.units import Unit
from datamodules.streaming.datamodule import StreamingTextDataModule
from datamodules.streaming.ledger import Ledger, NothingMoreError
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.watch import Taken, WatchedFolder, unit_of
from datamodules.streaming.windows import Filler, Opened, Place, Windows
from datamodules.transformations.infilling import FillInTheMiddle
from datamodules.transformations.masking import Masking

LEDGER = "watched.json"
"""In the run folder: which files were taken, in which order."""


class WatchedTextDataModule(StreamingTextDataModule):
    """Learns from the files of a folder as they come: each document once, in the order in which the files came.

    What is new in the folder whenever everything before it was trained on is a delivery: its files in the order of
    their names, cut into windows as those of a stream. A delivery ends with a whole optimizer step, which blank rows
    complete, so that nothing that was found waits for what comes later. Then the run waits, and where it has a
    `RunCheckpoint`, that writes one before. The run ends with `trainer.max_steps`, with a file `STOP` in the folder
    once everything there is trained on, or after `idle` seconds without a new file.

    The first rank looks, and writes what it takes to `watched.json` in the run folder, where the others read it; a
    checkpoint holds the same. So a run that was killed goes on with the same rows, and takes no file twice: one that
    changes after it was taken, or has the bytes of another one, is left out, and a line says so.

    Args:
        path: one local folder, with the folders in it. It may be empty at first.
        settle: seconds for which a file must not change before it is taken, 5 by default. 0 where files are renamed
            into the folder once they are whole, or written under a name that begins with a dot or ends in no known
            format.
        idle: seconds; None: waits without end.
        filters: what takes documents out, in this order, each of which looks at one document. What `val_path` names
            stays whole.
        on_bad_record: `skip` by default: what somebody else puts there should not end a run of weeks.
        val_path: what validates; nothing of the folder does, since each of its documents trains.
        tokenizer, text_column, window_tokens, shuffle, seq_len, document_mask, fim, masking, prompt_len, batch_size,
            seed, cache_dir: see `StreamingTextDataModule`. Rows of a window are shuffled; with `shuffle` false they are
            in their order.
    """

    default_val_share = 0.0

    def __init__(
        self,
        path: str | None = None,
        tokenizer: str | None = None,
        text_column: str = "text",
        window_tokens: int = 1 << 24,
        shuffle: bool = True,
        settle: float = 5.0,
        idle: float | None = None,
        filters: list[TextFilter] | None = None,
        seq_len: int = 1024,
        document_mask: bool = True,
        fim: FillInTheMiddle | None = None,
        masking: Masking | None = None,
        prompt_len: int = 32,
        batch_size: int = 8,
        val_path: str | list[str] | None = None,
        seed: int = 0,
        on_bad_record: OnBadRecord = "skip",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            path, tokenizer, text_column, window_tokens, shuffle, prompt_len=prompt_len, fim=fim, masking=masking,
            seq_len=seq_len, document_mask=document_mask, batch_size=batch_size, val_path=val_path, seed=seed,
            on_bad_record=on_bad_record, cache_dir=cache_dir, filters=filters,
        )  # fmt: skip
        self.settle = settle
        self.idle = idle
        self._ledger: Ledger | None = None
        self._held: list[list[Taken]] = []

    def check_settings(self) -> None:
        """Raises `DataError` for what is out of range, and where there is no folder, or one that the run writes to."""
        super().check_settings()
        if not isinstance(self.path, str) or not self.folder.is_dir():
            raise DataError(f"path: it must be one local folder that is there, not {self.path!r}")
        run = [] if self.trainer is None else [Path(self.trainer.default_root_dir)]
        for place in (*run, self.root):
            if place.resolve().is_relative_to(self.folder.resolve()):
                raise DataError(
                    f"path: {place}, which the run itself writes to, is in {self.folder}; watch another folder"
                )
        for name, value in (("settle", self.settle), ("idle", self.idle)):
            if value is not None and value < 0:
                raise DataError(f"{name}: it must be at least 0 seconds, not {value}")

    @property
    def folder(self) -> Path:
        """What is watched."""
        return Path(str(self.path)).expanduser()

    def find_files(self, path: str | list[str] | None) -> list[Unit]:
        """Those that validate; of those to train on none is known yet."""
        return [] if path == self.path else super().find_files(path)

    def setup(self, stage: str) -> None:
        """Begins before the first file."""
        super().setup(stage)
        self._ledger, self._held = None, []

    def build(self, look_again: bool) -> None:
        """Opens the tokenizer, and reads what validates."""
        super().build(look_again)
        assert self._plan is not None
        self._plan = self._plan.grown("", [])

    def in_brief(self) -> str:
        """What is watched."""
        return f"Watching {self.folder}"

    def make_windows(self, plan: Plan, filler: Filler | None, first: Place) -> WatchedWindows:
        """The windows from a place on, of the deliveries that the first rank finds."""
        ledger = self._ledger = self._open_ledger()
        plan = plan.grown(ledger.id, [])
        return WatchedWindows(plan, self.streams, filler, first, rank_zero_info, ledger, self.folder, self._in_steps())

    def _open_ledger(self) -> Ledger:
        looks = self.trainer is None or self.trainer.is_global_zero
        # A preview takes what is there.
        settle, idle = (self.settle, self.idle) if self.trainer is not None else (0.0, 0.0)
        folder = WatchedFolder(self.folder, settle, self.column, self.on_bad_record, print) if looks else None
        file = Path(self.trainer.default_root_dir) / LEDGER if self.trainer is not None else None
        ledger = Ledger(file, folder, idle)
        if looks:
            ledger.open(self._held)
        if self.trainer is not None:
            self.trainer.strategy.barrier("watched folder")
        if not looks:
            ledger.open()
        return ledger

    def _in_steps(self) -> Callable[[int], int]:
        """How many rows are missing before a sample, for the steps from the present position on to be whole."""
        accumulated = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        first, per_step = self.position, self.global_batch_size * accumulated
        return lambda sample: (first - sample) % per_step

    def training_loader(self, rows: Any, order: Any, collate: Any, **options: Any) -> ResumableLoader:
        """Batches until nothing more comes."""
        self._train_loader = self._loader(
            WatchedLoader, rows, order, collate, position=self.position, on_end=self._end, **options
        )
        return self._train_loader

    def _end(self, why: str) -> None:
        rank_zero_info(f"The run ends: {why}")
        if self.trainer is not None:
            self.trainer.should_stop = True

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for files, with all that came before trained on."""
        return self._ledger is not None and self._ledger.is_waiting

    def rests(self) -> bool:
        """Whether it will wait behind the batch that was handed out last; every rank asks at the same batch."""
        if self._ledger is None or not isinstance(self._windows, WatchedWindows):
            return False
        if not self._windows.begins_delivery(self.position):
            return False
        rests = not self._ledger.has(self._windows.at(self.position).begin.turn)
        return rests if self.trainer is None else self.trainer.strategy.broadcast(rests)

    def state_dict(self) -> dict[str, Any]:
        """The position, the window that it is in, and the files that were taken up to it."""
        state = super().state_dict()
        del state["files"]
        taken = self._held if self._ledger is None else self._ledger.deliveries
        turn = state["window"]["begin"][0]
        return state | {"taken": [list(files) for files in taken[: turn + 1]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the checkpoint's position, with the files that were taken by then."""
        super().load_state_dict(state)
        self._held = list(state.get("taken", []))

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print, of what is in the folder now."""
        try:
            yield from super().preview(num_records)
        except NothingMoreError:
            raise DataError(f"path: there is nothing in {self.folder} yet that could be shown") from None

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers."""
        return {"path": self.path, "rows": [self.rows_key()]}


class WatchedLoader(ResumableLoader):
    """Ends where nothing more comes.

    Args:
        on_end: is told why.
    """

    def __init__(self, *args: Any, on_end: Callable[[str], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_end = on_end

    def __iter__(self) -> Iterator[Any]:
        """Batches from the position on."""
        try:
            yield from super().__iter__()
        except NothingMoreError as end:
            self.on_end(str(end))


class WatchedWindows(Windows):
    """The windows of deliveries, of which none reaches into the next delivery.

    Args:
        ledger: has the deliveries.
        watched: the folder that they are in.
        missing: how many blank rows are needed before a sample.
    """

    def __init__(
        self, plan: Plan, root: Path, filler: Filler | None, first: Place, say: Callable[[str], object],
        ledger: Ledger, watched: Path, missing: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.watched = watched
        self.missing = missing
        super().__init__(plan, root, filler, first, say)

    def _ask_for(self, place: Place) -> Any:
        """Ahead of time where its files are known by now."""
        if self.filler is None or not self.ledger.has(place.begin.turn):
            return None
        new = self.ledger.deliveries[self.filler.num_turns : place.begin.turn + 1]
        self.filler.num_turns += len(new)
        grown = [[asdict(unit_of(one, self.watched)) for one in files] for files in new]
        return self.filler.submit(place.number, place.begin, place.digests, ledger=self.ledger.id, grown=grown)

    def _open_next(self) -> None:
        place = self._next
        if self._coming is None:
            self.ledger.wait_for(place.begin.turn)
            self._coming = self._ask_for(place)
        super()._open_next()

    def begins_delivery(self, sample: int) -> bool:
        """Whether a sample, up to which everything was asked for, is the first one of a delivery."""
        while (place := self.at(sample)) == self._next and place.begin != Cursor(place.begin.turn):
            self._open_next()  # the last window of a delivery may have no rows
        return place.sample == sample and place.begin == Cursor(place.begin.turn)

    def _num_blank(self, place: Place, facts: Mapping[str, Any]) -> int:
        ends = facts["end"].turn > place.begin.turn
        return self.missing(place.sample + facts["num_rows"]) if ends else 0

    def _note(self, opened: Opened) -> None:
        self._tell_bad(opened)
        self._tell_filtered(opened)
