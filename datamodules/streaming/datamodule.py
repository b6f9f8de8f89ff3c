"""Text for pretraining that is read once, from where it lies: object stores, web servers, the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import Dataset

from datamodules.cache import key_of
from datamodules.contract import Part
from datamodules.encoding.texts import TextEncoder
from datamodules.errors import DataError
from datamodules.filters import TextFilter
from datamodules.packed import Packed
from datamodules.pretraining import TextDataModule
from datamodules.records.contamination import TrainingTexts
from datamodules.serving.dataset import Documents
from datamodules.serving.loader import Order, ResumableLoader
from datamodules.serving.preview import preview
from datamodules.sources.bad_records import OnBadRecord
from datamodules.sources.discover import paths_of
from datamodules.sources.units import Unit
from datamodules.storage.statistics import statistics_of
from datamodules.streaming.files import files_of, remembered
from datamodules.streaming.plan import Cursor, Plan, check_same_files, pins
from datamodules.streaming.remote import is_remote, public
from datamodules.streaming.rows import StreamOrder, StreamRows
from datamodules.streaming.window import Window
from datamodules.streaming.windows import START, Filler, Place, Windows, tidy
from datamodules.transformations.infilling import FillInTheMiddle
from datamodules.transformations.lengths import LengthCurriculum
from datamodules.transformations.masking import Masking
from llm_lightning_safety.seals import write_json

WINDOWS_ON_DISK = 3  # the one that is read, the one before, and the one that is made
COPIES_ON_DISK = 2
ENDLESS = 1 << 40  # batches


class StreamingTextDataModule(TextDataModule):
    """Learns from text that need not fit on the disk: it is read once, tokenized on the way, and let go.

    Files are fetched one after the other, in an order that the seed names, and tokenized by a process of its own into a
    window on disk, while the window before is trained on. The rows of a window are shuffled and shared among all ranks.
    Where the stream ends it begins anew, in another order. A run that was killed goes on with the same rows, on any
    number of ranks and workers, with any batch size.

    Args:
        path: URLs that fsspec reads (`s3://`, `gs://`, `hf://`, `https://`, ...) of files, folders, or with `*`; local
            files; data sets of the Hugging Face hub (`owner/name`). Formats are those of `TextDataModule`.
        tokenizer: a hub id, a folder or a `.gguf` file. None is trained: a stream is read once.
        text_column: where a record's text is.
        window_tokens: so many are on disk at a time and are shuffled together, up to a document more. 16,777,216 by
            default: 32 MB with a small vocabulary, and some seconds of tokenizing before the first step.
        shuffle: False: files by their names, documents and rows in their order.
        patience: seconds for which a server that hangs or fails is asked again before the run stops. Ten minutes by
            default, in which most servers are started anew.
        name: of the hub data set's configuration, where it has several.
        split: of a hub data set.
        filters: what takes documents out, in this order, each of which looks at one document. What `val_path` names
            stays whole.
        val_share: share of the documents that never train, by the hashes of their texts, 0.01 by default; the first 512
            of them, in the order of the files' names, validate. Excludes `val_path`.
        val_path: as `path`; all of it validates, and is kept in the cache.
        seq_len, document_mask, fim, masking, length_curriculum, prompt_len, batch_size, seed, num_workers,
            on_bad_record, cache_dir: see `TextDataModule`, whose other settings need to know all texts before the first
            one.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        tokenizer: str | None = None,
        text_column: str = "text",
        window_tokens: int = 1 << 24,
        shuffle: bool = True,
        patience: float = 600.0,
        name: str | None = None,
        split: str = "train",
        filters: list[TextFilter] | None = None,
        seq_len: int = 1024,
        document_mask: bool = True,
        fim: FillInTheMiddle | None = None,
        masking: Masking | None = None,
        length_curriculum: LengthCurriculum | None = None,
        prompt_len: int = 32,
        batch_size: int = 8,
        val_share: float | None = None,
        val_path: str | list[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            path, text_column=text_column, prompt_len=prompt_len, fim=fim, masking=masking, tokenizer=tokenizer,
            seq_len=seq_len, document_mask=document_mask, batch_size=batch_size, val_share=val_share,
            val_path=val_path, seed=seed, num_workers=num_workers, on_bad_record=on_bad_record, cache_dir=cache_dir,
            length_curriculum=length_curriculum, filters=filters,
        )  # fmt: skip
        self.column = text_column
        self.window_tokens = window_tokens
        self.shuffle = shuffle
        self.patience = patience
        self.hub_name = name
        self.hub_split = split
        self._files: tuple[tuple[Unit, ...], tuple[Unit, ...]] | None = None
        self._plan: Plan | None = None
        self._filler: Filler | None = None
        self._windows: Windows | None = None
        self._place = START

    def check_settings(self) -> None:
        """Raises `DataError` for what is out of range, and for a run without an end."""
        super().check_settings()
        if self.tokenizer_name is None:
            raise DataError(
                "tokenizer: a stream is read once, so that none is trained from it: name one by --tokenizer, such as a"
                " model folder or one that TextDataModule trained on a part of the text"
            )
        if self.chain is not None and self.chain.comparing:
            raise DataError(
                f"filters: {type(self.chain.comparing[0]).__name__} compares all documents, and a stream is read once;"
                " leave it out, or take TextDataModule"
            )
        if self.patience <= 0:
            raise DataError(f"patience: it must be above 0 seconds, not {self.patience}")
        trainer = self.trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.max_steps == -1 and trainer.max_epochs not in (None, -1):
            raise DataError(
                "trainer.max_epochs: nobody knows how many rows a stream has before it was read; count"
                " trainer.max_steps, or set trainer.max_time"
            )
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise DataError("trainer.overfit_batches: a stream is read once; take TextDataModule on one of its files")

    def limits(self) -> dict[str, tuple[int, int]]:
        """With a window's tokens: a row."""
        return super().limits() | {"window_tokens": (self.window_tokens, self.seq_len)}

    def check(self) -> None:
        """Looks at the settings, and for the files."""
        self.check_settings()
        self._found()

    @property
    def streams(self) -> Path:
        """The folder of the cache that windows are in."""
        return self.root / "streams"

    @property
    def _fills(self) -> bool:
        """Whether windows are made for this process; on each machine one does it for all."""
        return self.trainer is None or self.trainer.local_rank == 0

    def _found(self) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
        """The files to train and to validate on, looked for once."""
        if self._files is None:
            memo = self.streams / f"files-{key_of(self._public_settings())}.json"
            if self._fills:
                found = [self.find_files(path) for path in (self.path, self.val_path)]
                write_json(memo, {"found": [[asdict(replace(u, path=public(u.path))) for u in us] for us in found]})
                self._files = (tuple(found[0]), tuple(found[1]))
            else:  # a server may have other files by now
                self._files = remembered(memo)
        return self._files

    def find_files(self, path: str | list[str] | None) -> list[Unit]:
        """The files that there are at some paths."""
        return files_of(paths_of(path), self.column, self.hub_name, self.hub_split, self.patience, self.root)

    def _public_settings(self) -> list[Any]:
        paths = [[public(path) for path in paths_of(some)] for some in (self.path, self.val_path)]
        return [paths, self.column, self.hub_name, self.hub_split]

    def prepare_data(self) -> None:
        """Looks for the files; Lightning calls it on one process of each node."""
        self.check()

    def setup(self, stage: str) -> None:
        """Opens the stream at its beginning."""
        self._place, self._windows = START, None
        super().setup(stage)

    def build(self, look_again: bool) -> None:
        """Opens the tokenizer, and reads what validates."""
        units, val_units = self._found()
        tokenizer = self.make_tokenizer([], self.root)
        encoder = self.make_encoder(tokenizer)
        share = 0.0 if val_units else (self.default_val_share if self.val_share is None else self.val_share)
        self._plan = Plan(
            units, val_units, share, encoder.tokenizer.to_str(), encoder.settings(), self.seq_len, self.room(),
            self.window_tokens, self.shuffle, self.seed, self.on_bad_record, self.patience,
            filters=() if self.chain is None else tuple(self.chain.specs()),
        )  # fmt: skip
        self._check_disk(encoder)
        self._filler = Filler(self._plan, self.streams) if self._fills else None
        self._val = self._validation(self._plan) if share or val_units else []
        self.tokenizer = tokenizer

    def _check_disk(self, encoder: TextEncoder) -> None:
        assert self._plan is not None
        self.streams.mkdir(parents=True, exist_ok=True)
        largest = sorted((unit.size for unit in self._plan.units if is_remote(unit.path)), reverse=True)
        self._most_bytes = WINDOWS_ON_DISK * self.window_tokens * encoder.dtype.itemsize + sum(largest[:COPIES_ON_DISK])
        free = shutil.disk_usage(self.streams).free
        if free < self._most_bytes:
            raise DataError(
                f"window_tokens: the stream takes up to {self._most_bytes / 1e9:.1f} GB of the disk of {self.streams}"
                f" ({COPIES_ON_DISK} of its files and {WINDOWS_ON_DISK} windows), which has {free / 1e9:.1f} GB left;"
                " lower it, cut the files smaller, or name another cache_dir"
            )

    def _validation(self, plan: Plan) -> Packed:
        window = Window(self.streams / f"val-{plan.val_key()}")
        window.wait(self._filler.submit(None, Cursor(), {}) if self._filler is not None else None)
        if not window.facts()["num_rows"]:
            rank_zero_warn("Nothing validates: no document is held out. Raise val_share, or give a val_path")
            return []
        return [(window.rows, [window.shard])]

    def report(self) -> None:
        """Says what there is to train on, and what it takes of the disk."""
        rank_zero_info(f"{self.in_brief()}, {self.window_tokens:,} tokens at a time")
        rank_zero_info(f"  on disk at most {self._most_bytes / 1e9:,.2f} GB ({self.streams})")
        self.statistics = {"val": statistics_of(self._val, self.seq_len)} if self._val else {}
        for part, statistics in self.statistics.items():
            rank_zero_info(f"  {part}: {self.in_words(statistics)}")

    def in_brief(self) -> str:
        """What there is to train on."""
        assert self._plan is not None
        size = sum(unit.size for unit in self._plan.units)
        told = f" of {size / 1e9:,.2f} GB" if size else ""
        return f"Stream: {len(self._plan.units):,} files{told}"

    def train_dataloader(self) -> ResumableLoader:
        """Batches without end, from where the checkpoint left off: `input_ids`, `labels`, `position_ids`."""
        per_batch = self.global_batch_size
        steps = self.trainer.max_steps if self.trainer is not None else -1
        accumulated = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        # An epoch is the whole run, so that progress can be told.
        num_batches = steps * accumulated if steps > 0 else ENDLESS
        # Batches that workers have before them, and those by which another rank may be behind this one.
        behind = (2 * self.num_workers + 1 + accumulated) * per_batch
        if behind * self.seq_len > self.window_tokens:
            rank_zero_warn(
                f"window_tokens={self.window_tokens:,}: up to {behind:,} rows of {self.seq_len} tokens are on their way"
                f" at a time, which is more than a window, so that more than {WINDOWS_ON_DISK} lie on disk; raise it"
            )
        rows, order = self.make_stream(num_batches * per_batch, behind)
        return self.training_loader(rows, order, self.make_collator(), whole_batches=True, ordered_at_once=1)

    def make_stream(self, epoch_len: int, behind: int) -> tuple[Dataset, Order]:
        """The rows, and which one comes when; see `StreamOrder`."""
        windows = self.open_windows()
        if self._fills:
            tidy(self.streams, self.windows_to_keep())
        return StreamRows(windows.folder, self.make_draw("train")), StreamOrder(windows, epoch_len, behind)

    def windows_to_keep(self) -> list[Path]:
        """Folders of what is read first, which may be there from a run that was killed."""
        assert self._windows is not None
        return [self._windows.folder / str(self._place.number + more) for more in (0, 1)]

    def open_windows(self) -> Windows:
        """The windows from the present position on."""
        assert self._plan is not None
        if self._windows is not None:
            self._place = self._windows.at(self.position)
            self._windows.close()
        if self._filler is None and self._fills:
            self._filler = Filler(self._plan, self.streams)
        self._windows = self.make_windows(self._plan, self._filler, self._place)
        return self._windows

    def make_windows(self, plan: Plan, filler: Filler | None, first: Place) -> Windows:
        """The windows from a place on."""
        return Windows(plan, self.streams, filler, first, rank_zero_info)

    def state_dict(self) -> dict[str, Any]:
        """The position, the window that it is in, and what the files were."""
        assert self._plan is not None
        place = self._windows.at(self.position) if self._windows is not None else self._place
        window = {**place._asdict(), "begin": list(place.begin)}
        return super().state_dict() | {"window": window, "files": pins(self._plan.units)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the checkpoint's position; raises `DataError` where a file is another one."""
        fits = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if fits and "files" in state:
            assert self._plan is not None
            check_same_files(state["files"], pins(self._plan.units))
        super().load_state_dict(state)
        if fits and "window" in state:
            self._place = Place(**{**state["window"], "begin": Cursor(*state["window"]["begin"])})
            self._windows = None

    def rows_key(self) -> str:
        """Names the files, the order, and what is made of rows."""
        assert self._plan is not None
        draw = self.make_draw("train")
        return self.key_with_lengths(key_of(self._plan.key(), *([] if draw is None else [draw.key()])))

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print: the first training documents, and the statistics of the first window."""
        assert self.tokenizer is not None
        windows = self.open_windows()
        windows.reach(0)
        first = Window(windows.folder / str(windows.opened[0].place.number))
        return preview(Documents([(first.rows, [first.shard])]), self.tokenizer, num_records)

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers."""
        assert self._plan is not None
        size = sum(unit.size for unit in self._plan.units)
        paths = [public(path) for path in paths_of(self.path)]
        return {"path": paths, "rows": [self.rows_key()], "num_files": len(self._plan.units), "num_bytes": size}

    def _part(self, part: Part) -> Packed:
        if part == "train":
            raise DataError("data: the rows of a stream are not numbered, so that nothing can be kept of each of them")
        return super()._part(part)

    def training_texts(self) -> TrainingTexts:
        """Raises `DataError`: they would all have to be read."""
        raise DataError("data: a stream is read once, so that items of evaluations cannot be looked for in it")

    def teardown(self, stage: str) -> None:
        """Ends the process that reads."""
        if stage == "fit":
            if self._windows is not None:
                self._windows.close()
            if self._filler is not None:
                self._filler.close()
                self._filler = None
