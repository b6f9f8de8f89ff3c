"""Text for pretraining from several streams, each with its share of the rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from datamodules.cache import key_of
from datamodules.errors import DataError
from datamodules.filters import TextFilter
from datamodules.mixing import MixingDataModule
from datamodules.records.text_source import TextSource
from datamodules.serving.loader import Order
from datamodules.serving.orders.schedule import names_of, scheduled_streams
from datamodules.sources.bad_records import OnBadRecord
from datamodules.storage.statistics import statistics_of
from datamodules.streaming.datamodule import StreamingTextDataModule
from datamodules.streaming.mixed.rows import MixedStreamOrder, MixedStreamRows
from datamodules.streaming.remote import public
from datamodules.streaming.rows import StreamOrder
from datamodules.streaming.windows import START, tidy
from datamodules.transformations.infilling import FillInTheMiddle
from datamodules.transformations.lengths import LengthCurriculum
from datamodules.transformations.masking import Masking


class MixedStreamingTextDataModule(StreamingTextDataModule):
    """Learns from several streams at once, each with the share of the rows that its weight has at that moment.

    Each source is a stream as `StreamingTextDataModule` reads it: its own order, its own windows, and a process of its
    own that fills them. Which stream a row comes from is decided as in a mixture of files: a function of the row's
    number, the seed and the weights. So a run goes on exactly, on any number of ranks and workers.

    Args:
        sources: the streams, each with a `weight`, and perhaps a `weight_schedule` and `max_epochs`, a whole number
            here: a stream is read again, in another order, or its share goes to the others.
        val_share: of each stream; see `StreamingTextDataModule`. Each has its own loss in validation.
        tokenizer, window_tokens, shuffle, patience, filters, seq_len, document_mask, fim, masking, length_curriculum,
            prompt_len, batch_size, seed, num_workers, on_bad_record, cache_dir: see `StreamingTextDataModule`;
            `window_tokens` are those of each stream.
    """

    def __init__(
        self,
        sources: list[TextSource] | None = None,
        tokenizer: str | None = None,
        window_tokens: int = 1 << 24,
        shuffle: bool = True,
        patience: float = 600.0,
        filters: list[TextFilter] | None = None,
        seq_len: int = 1024,
        document_mask: bool = True,
        fim: FillInTheMiddle | None = None,
        masking: Masking | None = None,
        length_curriculum: LengthCurriculum | None = None,
        prompt_len: int = 32,
        batch_size: int = 8,
        val_share: float | None = None,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        cache_dir: str | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "tokenizer": tokenizer, "window_tokens": window_tokens, "shuffle": shuffle, "patience": patience,
            "filters": filters, "seq_len": seq_len, "document_mask": document_mask, "fim": fim, "masking": masking,
            "length_curriculum": length_curriculum, "prompt_len": prompt_len, "batch_size": batch_size,
            "val_share": val_share, "seed": seed, "num_workers": num_workers, "on_bad_record": on_bad_record,
            "cache_dir": cache_dir,
        }  # fmt: skip
        super().__init__(**self._options)
        self.sources = sources
        self.text_column = None  # that of each source counts
        self._ends: list[int | None] = []

    @cached_property
    def _parts(self) -> list[StreamingTextDataModule]:
        """The streams."""
        parts = [
            StreamingTextDataModule(
                one.path, text_column=one.text_column or "text", name=one.name, split=one.split, **self._options
            )
            for one in self.train_sources
        ]
        for part in parts:
            part.trainer = self.trainer
        return parts

    def check_settings(self) -> None:
        """As of one stream, and what only a mixture has."""
        super().check_settings()
        for source in self.train_sources:
            if source.weight is None:
                raise DataError(
                    f"sources: {source.path!r} needs a weight: nobody knows how many rows a stream has before it was "
                    "read, so that they cannot be mixed by these"
                )
            if source.max_epochs is not None and source.max_epochs % 1:
                raise DataError(
                    f"sources: the max_epochs of {source.path!r} must be whole, not {source.max_epochs}: nobody knows "
                    "where a part of a stream ends"
                )

    def check(self) -> None:
        """Looks at the settings, and for the files."""
        self.check_settings()
        for part in self._parts:
            part.check()

    def setup(self, stage: str) -> None:
        """Opens each stream at its beginning."""
        self._ends = [None] * len(self.train_sources)
        for part in self._parts:
            part.trainer, part._place, part._windows, part._position = self.trainer, START, None, 0
        super().setup(stage)

    def build(self, look_again: bool) -> None:
        """Opens the tokenizer, and reads what validates of each stream."""
        self.tokenizer = self.make_tokenizer([], self.root)
        for part in self._parts:
            part.build(look_again)
        self._check_disk_for_all()
        self._val = [packed for part in self._parts for packed in part._val]

    def _check_disk_for_all(self) -> None:
        self._most_bytes = sum(part._most_bytes for part in self._parts)
        free = shutil.disk_usage(self.streams).free
        if free < self._most_bytes:
            raise DataError(
                f"window_tokens: the {len(self._parts)} streams take up to {self._most_bytes / 1e9:.1f} GB of the disk "
                f"of {self.streams}, which has {free / 1e9:.1f} GB left; lower it, cut the files smaller, or name "
                "another cache_dir"
            )

    def validated_sources(self) -> Sequence[str]:
        """The names of the streams that validate, as far as it is known by now."""
        names = names_of(self.train_sources)
        if self.tokenizer is None:
            return [] if self.val_share == 0 else names
        return [name for name, part in zip(names, self._parts, strict=True) if part._val]

    @property
    def val_source_names(self) -> list[str]:
        """Of the streams that validate, where several do: each has its own loss, too."""
        names = list(self.validated_sources())
        return names if len(names) > 1 else []

    def report(self) -> None:
        """Says what there is to train on, and what it takes of the disk."""
        shares = self.shares()
        for name, part in zip(shares, self._parts, strict=True):
            rank_zero_info(f"{name}: {part.in_brief()}, {shares[name]:.1%} of the first rows")
        rank_zero_info(f"  {self.window_tokens:,} tokens of each at a time")
        rank_zero_info(f"  on disk at most {self._most_bytes / 1e9:,.2f} GB ({self.streams})")
        self.statistics = {"val": statistics_of(self._val, self.seq_len)} if self._val else {}
        for name, statistics in self.statistics.items():
            rank_zero_info(f"  {name}: {self.in_words(statistics)}")

    def make_stream(self, epoch_len: int, behind: int) -> tuple[Dataset, Order]:
        """The rows of all streams, and which one comes when."""
        self._tell_places()
        self._ends = self._known_ends()
        mixture = scheduled_streams(self.train_sources, self._ends, self.seq_len, self.seed)
        self.begin_mixture(mixture)
        windows = [part.open_windows() for part in self._parts]
        if self._fills:
            tidy(self.streams, [folder for part in self._parts for folder in part.windows_to_keep()])
        rows = MixedStreamRows([one.folder for one in windows], self.make_draw("train"))
        orders = [StreamOrder(one, epoch_len, behind) for one in windows]
        turns = [None if one.max_epochs is None else int(one.max_epochs) for one in self.train_sources]
        return rows, MixedStreamOrder(mixture, orders, turns)

    def _tell_places(self) -> None:
        """Let each stream know how many of its rows training was given."""
        if self._mixture is not None:
            for part, count in zip(self._parts, self._mixture.counts(self.position).tolist(), strict=True):
                part._position = count

    def _known_ends(self) -> list[int | None]:
        return self._ends if self._mixture is None else self._mixture.ends()

    def state_dict(self) -> dict[str, Any]:
        """The position, and that of each stream."""
        self._tell_places()
        streams = [part.state_dict() for part in self._parts]
        return MixingDataModule.state_dict(self) | {"streams": streams, "ends": self._known_ends()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the checkpoint's position; raises `DataError` where a file is another one."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for part, one in zip(self._parts, state.get("streams", []), strict=False):
            part.load_state_dict(one)
        MixingDataModule.load_state_dict(self, state)
        self._ends = list(state.get("ends", self._ends))

    def rows_key(self) -> str:
        """Names the files, the order, and what is made of rows."""
        return key_of(self.weights, [part.rows_key() for part in self._parts], *self.mixture_key())

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print: the first training documents of each stream, and the statistics of its first window."""
        for name, part in zip(names_of(self.train_sources), self._parts, strict=True):
            yield f"{name}:"
            yield from part.preview(num_records)

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers."""
        parts = [part.describe() for part in self._parts]
        sums = {name: sum(part[name] for part in parts) for name in ("num_files", "num_bytes")}
        return {"path": [public(one.path) for one in self.train_sources], "rows": [self.rows_key()], **sums}

    def teardown(self, stage: str) -> None:
        """Ends the processes that read."""
        for part in self._parts:
            part.teardown(stage)
