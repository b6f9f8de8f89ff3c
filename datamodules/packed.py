"""What DataModules over packed rows share: tokenizing, packing, the mixture of sources, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from datamodules.base import Collate
from datamodules.cache import key_of
from datamodules.contract import Part
from datamodules.encoding.tokenization import tokenize
from datamodules.errors import DataError
from datamodules.mixing import MixingDataModule
from datamodules.records.contamination import TrainingTexts
from datamodules.serving.collate import NumberedCollator, PackedCollator, PromptCollator
from datamodules.serving.dataset import DocumentPrompts, Documents, NumberedRows, PackedRows
from datamodules.serving.judging import held_out
from datamodules.serving.loader import EvaluationLoader, Order, ResumableLoader
from datamodules.serving.orders.order import ShuffledOrder
from datamodules.serving.orders.schedule import names_of
from datamodules.serving.preview import preview
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.discover import Source
from datamodules.sources.splits import TEST, VALIDATION
from datamodules.sources.units import Unit
from datamodules.storage.held_out import unlike_share
from datamodules.storage.rows import RowIndex, Selection, TooLong, hashes_of, pack_rows, split_documents
from datamodules.storage.shards import Document, Encoder, Shard
from datamodules.storage.statistics import check_any, notes_in_words, skipped_in_words, statistics_of
from datamodules.transformations.draws import Draw, DrawnDocuments, drawn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Packed: TypeAlias = list[tuple[RowIndex, list[Shard]]]  # for each source its rows, and what they point into


class PackedDataModule(MixingDataModule):
    """Tokenizes sources once, packs them into full rows, and serves those in a resumable order.

    A subclass says how its records are found (`find_units`) and tokenized (`make_encoder`), and what `predict` goes on
    from (`make_prompts`).

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        tokenizer: a hub id, a folder or a `.gguf` file.
        seq_len: T, tokens of a row.
        document_mask: True: documents that share a row do not see each other. False: a row is read as one document.
        temperature: of sources without weights: 1 gives each a share in proportion to its rows, more makes shares more
            even. None: every row once an epoch.
        kwargs: see `ResumableDataModule`.

    Attributes:
        statistics: for `train` and `val` what packing did, once `setup` ran; see `statistics_of`.
    """

    too_long: TooLong = "split"
    is_causal = True
    """Whether a token is predicted by those before it."""
    numbers_rows = False
    """Whether batches bring the numbers of their rows (`row_numbers`), for what is kept of each elsewhere."""

    def __init__(
        self,
        path: str | list[str] | None = None,
        tokenizer: str | None = None,
        seq_len: int = 1024,
        document_mask: bool = True,
        temperature: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, tokenizer, **kwargs)
        self.temperature = temperature
        self.seq_len = seq_len
        self.document_mask = document_mask
        self.statistics: dict[str, dict[str, float]] = {}
        self._train: Packed = []
        self._val: Packed = []
        self._units: dict[str, list[list[Unit]]] = {}
        self.selections: dict[str, Selection] = {}

    def find_units(self, source: Any, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read in a source."""
        raise NotImplementedError

    def make_tokenizer(self, units: list[Unit], root: Path) -> PreTrainedTokenizerFast:
        """The tokenizer for data and model; `units` are all that is trained on."""
        raise NotImplementedError

    def make_encoder(self, tokenizer: PreTrainedTokenizerFast) -> Encoder:
        """What makes documents of records."""
        raise NotImplementedError

    def make_prompts(self, sources: Packed) -> DocumentPrompts:
        """What `predict` goes on from."""
        raise NotImplementedError

    def training_texts(self) -> TrainingTexts:
        """With what else is trained on."""
        return TrainingTexts([*self.train_sources, *self.added], self.root, look_again=False)

    def make_rows(self, sources: Packed) -> Any:
        """The rows to read."""
        rows = PackedRows(sources)
        return NumberedRows(rows, rows.num_rows) if self.numbers_rows else rows

    def make_draw(self, part: Part) -> Draw | None:
        """What makes another version of a row each time that it is served; None: it stays the same."""
        return None

    def room(self) -> tuple[int, int]:
        """Tokens of a training row, and beside each of its pieces, that packing leaves for what draws add."""
        return 0, 0

    def make_collator(self) -> Collate:
        """What makes a batch of rows."""
        collate = PackedCollator(self.seq_len, self.pad_token_id, self.document_mask, self.is_causal)
        return NumberedCollator(collate) if self.numbers_rows else collate

    def in_order(self, part: Part) -> EvaluationLoader | list:
        """All rows of a part, each once, in their order."""
        rows = self.make_rows(self._part(part))
        served = drawn(rows, self.make_draw(part))
        return self.evaluation_loader(served, self.make_collator()) if len(rows) else []

    def num_rows(self, part: Part) -> int:
        """How many `in_order` has, without the blank ones."""
        return len(self.make_rows(self._part(part)))

    def rows_name(self, part: Part) -> str:
        """Names the rows of a part by all that is in them: records, template, tokenizer, and how they are cut."""
        return key_of(self.seq_len, [index.folder.name for index, _ in self._part(part)])

    def in_words(self, counts: dict[str, float]) -> str:
        """One of `statistics` as a line to read."""
        raise NotImplementedError

    def limits(self) -> dict[str, tuple[int, int]]:
        """With a row's tokens: one has no next one to predict."""
        return {"seq_len": (self.seq_len, 2)} | super().limits()

    def build(self, look_again: bool) -> None:
        """Tokenizes and packs what the cache lacks."""
        train_units = [self.find_units(source, self.root, look_again) for source in self.train_sources]
        val_units = [self.find_units(source, self.root, look_again) for source in self.val_sources]
        tokenizer = self.make_tokenizer([unit for units in train_units for unit in units], self.root)
        added_units = [self.find_units(source, self.root, look_again) for source in self.added]
        train, others = ([unit for units in some for unit in units] for some in (train_units, val_units + added_units))
        shards = iter(self.make_shards(tokenizer, train, others))
        train_shards = [[next(shards) for _ in units] for units in train_units]
        val_shards = [[next(shards) for _ in units] for units in val_units]
        self._pack(train_shards, val_shards, [[next(shards) for _ in units] for units in added_units])
        self.tokenizer = tokenizer
        self._units = {"train": train_units, "val": val_units or train_units}

    def make_shards(self, tokenizer: PreTrainedTokenizerFast, train: list[Unit], others: list[Unit]) -> list[Shard]:
        """The tokens of what is trained on, and then of what else there is."""
        return tokenize([*train, *others], self.make_encoder(tokenizer), self.root, self.on_bad_record)

    def _pack(
        self, train_shards: list[list[Shard]], val_shards: list[list[Shard]], added_shards: list[list[Shard]]
    ) -> None:
        share = self.share_to_hold_out()
        check_any("path", self.train_sources, train_shards)
        check_any("val_path", self.val_sources, val_shards)
        train, val = self.split([shard for shards in train_shards for shard in shards], share)
        if val_shards:
            val = Selection()
        else:
            val_shards = train_shards if share else []
        self._train = [(self._rows(shards, train, *self.room()), shards) for shards in train_shards]
        self._val = [(self._rows(shards, val), shards) for shards in val_shards]
        for source, (index, _) in zip(self.train_sources, self._train, strict=True):
            self._check_not_empty(source, index.statistics)
        if self._val and not sum(index.statistics["num_rows"] for index, _ in self._val):
            rank_zero_warn(f"Nothing validates: all that was held out is longer than a row (seq_len={self.seq_len}).")
            self._val = []
        self.selections = {"train": train, "val": val}
        num_train, num_val = (
            sum(index.statistics["num_documents"] for index, _ in s) for s in (self._train, self._val)
        )
        if words := unlike_share(share, num_val, num_train + num_val):
            rank_zero_warn(words)
        if added_shards:
            held_out = Selection(exceptions=hashes_of([shard for shards in val_shards for shard in shards], val))
            self._train += [(self._rows(shards, held_out, *self.room()), shards) for shards in added_shards]

    def split(self, shards: list[Shard], share: float) -> tuple[Selection, Selection]:
        """What trains and what validates."""
        return split_documents(shards, share)

    def _rows(self, shards: list[Shard], selection: Selection, of_row: int = 0, of_piece: int = 0) -> RowIndex:
        return pack_rows(shards, selection, self.seq_len - of_row, self.root, self.too_long, of_piece)

    def _check_not_empty(self, source: Source, statistics: dict[str, int]) -> None:
        needs_rows = source.weight is not None or self.temperature is not None  # a share of nothing cannot be given
        if statistics["num_rows"] or (len(self._train) > 1 and not needs_rows):
            return
        if statistics["num_documents"]:
            raise DataError(
                f"seq_len: all {statistics['num_documents']:,} documents of {source.path!r} are longer than"
                f" {self.seq_len} tokens, and too_long={self.too_long} leaves nothing of them; raise seq_len"
            )
        raise DataError(
            f"val_share: all of {source.path!r} falls to validation, as it is one document or copies of one;"
            " give more text, a val_path, or val_share=0"
        )

    def report(self) -> None:
        """Says what there is to train on, and what was left out of it."""
        parts: dict[Part, Packed] = {"train": self._train, "val": self._val}
        self.statistics = {name: self.count(name) for name, part in parts.items() if part}
        rank_zero_info(f"Data (cache: {self.root})")
        for name, statistics in self.statistics.items():
            rank_zero_info(f"  {name}: {self.in_words(statistics)}")
        shards = [shard for part in parts.values() for _, shards in part for shard in shards]
        for line in notes_in_words(shards):
            rank_zero_info(f"  {line}")
        if skipped := skipped_in_words(shards):
            rank_zero_warn(skipped)

    def count(self, part: Part) -> dict[str, float]:
        """One of `statistics`."""
        return statistics_of(self._part(part), self.seq_len)

    def _part(self, part: Part) -> Packed:
        return self._train if part == "train" else self._val

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches without end, from where the checkpoint left off: `input_ids`, `labels`, `position_ids`."""
        rows, draw = self.make_rows(self._train), self.make_draw("train")
        period = 0 if draw is None else len(rows)
        per_batch = self.global_batch_size
        order: Order = self.make_order(rows.num_rows, period)
        if (few := self.rows_to_overfit(len(rows))) is not None:
            order = ShuffledOrder([few], seed=self.seed, period=period)
        if order.epoch_len < per_batch:
            rank_zero_warn(
                f"The data has {order.epoch_len} rows of {self.seq_len} tokens, fewer than a batch of all ranks"
                f" ({per_batch}): the others are blank. Lower batch_size or seq_len, or give more text."
            )
        if self.trainer is not None:
            self._log_statistics(self.trainer)
        return self.training_loader(drawn(rows, draw), order, self.make_collator())

    def row_counts(self) -> tuple[list[int], list[int]]:
        """How many rows an epoch draws from, of each source and of each one in `added`."""
        counts, _ = self.mixture(self.make_rows(self._train).num_rows)
        num_real = len(counts) - len(self.added)
        return counts[:num_real], counts[num_real:]

    def val_dataloader(self) -> EvaluationLoader | list:
        """The validation rows in a fixed order, equally many batches on each rank (blank rows complete the last)."""
        if not self._val:
            return []
        rows = drawn(self.make_rows(self._val), self.make_draw("val"))
        if not self.val_source_names:
            return self.evaluation_loader(rows, self.make_collator())
        numbered = rows if isinstance(rows, NumberedRows) else NumberedRows(rows, PackedRows(self._val).num_rows)
        return self.evaluation_loader_by_source(numbered, self.make_collator())

    @property
    def val_source_names(self) -> list[str]:
        """Of the sources that validate, where several were named as `sources`: each has its own loss, too."""
        if self.sources is None or len(self._val) < 2:
            return []
        return names_of(self.val_sources or self.train_sources)

    def validated_sources(self) -> Sequence[str]:
        """The names of the sources that validate, as far as it is known by now."""
        if not (self.val_sources or self.share_to_hold_out()):
            return []
        names = names_of(self.val_sources or self.train_sources)
        if self.tokenizer is None:  # nothing was read yet
            return names
        return [name for name, (rows, _) in zip(names, self._val, strict=False) if rows.statistics["num_rows"]]

    def predict_dataloader(self) -> EvaluationLoader | list:
        """What to go on from in the validation documents: `prompt_ids`, `attention_mask`."""
        if not self._val:
            return []
        return self.evaluation_loader(self.make_prompts(self._val), PromptCollator(self.pad_token_id))

    def held_out_documents(self) -> Iterator[Document]:
        """What to measure a loss on, streaming: the documents of each path that are for validation or testing where
        names of files tell of some, else all of it. Nothing of it is cut or kept.

        Raises:
            DataError: there are none, or a record cannot be read.
        """
        encoder = self.make_encoder(self.make_tokenizer([], self.root))
        for source in self.train_sources:
            for unit in self.find_units(held_out(source, (VALIDATION, TEST)), self.root, look_again=True):
                yield from encoder.documents(unit, BadRecords(unit, self.on_bad_record))

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print: the first training documents as the model will see them, and the statistics of all."""
        assert self.tokenizer is not None
        documents, draw = Documents(self._train), self.make_draw("train")
        return preview(documents if draw is None else DrawnDocuments(documents, draw), self.tokenizer, num_records)

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers: `path`, `rows` (named by their content) and the statistics."""
        rows = [index.folder.name for index, _ in self._train]
        return {"path": self.path, "rows": rows, **self.statistics.get("train", {})}

    @rank_zero_only
    def _log_statistics(self, trainer: Trainer) -> None:
        if trainer.ckpt_path is not None:  # the run that goes on has them, and its step may not be known yet
            return
        names = ("num_tokens", "num_dropped", "padded_share", "trained_share", "too_long_share")
        metrics = {f"data/{name}": float(self.statistics["train"][name]) for name in names}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def rows_key(self) -> str:
        """Names the rows, their mixture, the seed, and what is made of rows by it."""
        draw = self.make_draw("train")
        drawn_by = [] if draw is None else [draw.key()]
        return key_of(
            self.seed, self.weights, [index.folder.name for index, _ in self._train], *self.mixture_key(), *drawn_by
        )
