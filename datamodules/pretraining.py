"""Text for pretraining: from anything that holds text to shuffled, packed, resumable batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from datamodules.base import Collate
from datamodules.cache import key_of
from datamodules.contract import BatchKind, Part
from datamodules.encoding.filtered_texts import FilteredTextEncoder
from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenization import tokenize
from datamodules.encoding.tokenizer import SMALLEST_VOCAB, framing, load_tokenizer, trained_tokenizer
from datamodules.errors import DataError
from datamodules.filters import Chain, TextFilter
from datamodules.filters.funnel import table
from datamodules.filters.kept import keep, read_report
from datamodules.packed import Packed, PackedDataModule
from datamodules.records.text_source import OtherTextSource, TextSource, peek_texts, text_units
from datamodules.serving.collate import Piece
from datamodules.serving.dataset import DocumentPrompts, Documents
from datamodules.serving.loader import Order, ResumableLoader
from datamodules.serving.preview import statistics_in_words
from datamodules.sources.units import Unit
from datamodules.storage.shards import Shard
from datamodules.transformations.draws import Draw
from datamodules.transformations.infilling import FillInTheMiddle, Infilling, room
from datamodules.transformations.lengths import Cutter, LengthCurriculum
from datamodules.transformations.masking import MASK, Masking, Masks
from datamodules.transformations.spans import MOST_SENTINELS, SpanCollator, SpanCorruption, Spans, pairs_in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_VOCAB_SIZE = 8192
LEAST_TO_FILL_IN = 32  # tokens of a row, a third of which its markers may take


class TextDataModule(PackedDataModule):
    """Learns from text: reads it, tokenizes it once, packs it into full rows, and serves it in a resumable order.

    Text comes from `path` or `sources`. Reading: .txt, .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders
    and globs of them, the embedded corpus `python_docs`, and data sets of the Hugging Face hub (`owner/name`). Texts
    longer than a row are cut into several rows, shorter ones packed together. By default 0.01 of the texts validate.

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        sources: the same with weights and options for each; excludes `path`.
        text_column: where a record's text is. None: `text`, else the only column that holds strings.
        vocab_size: where no tokenizer is named, a byte-level BPE with so many tokens is trained from the text. 8,192
            by default: a small model's embeddings stay small. A small corpus may yield fewer. Excludes `tokenizer`.
        prompt_len: tokens of a document's beginning that `predict` goes on from.
        fim: rearrange some documents so that the network learns to fill in, at other cuts each epoch; what validates
            stays from left to right. None: none.
        masking: hide tokens, others each epoch, for an encoder to tell; in validation always the same ones. None: none.
        spans: take spans out, others each epoch, for an encoder-decoder to write; in validation always the same ones.
        filters: what takes documents out of what is trained on, in this order; what `val_path` names stays whole.
        length_curriculum: cut the documents of rows at first, at a length that grows; what validates stays as it is.
            None: none.
        val_text_column: as `text_column`, for `val_path`. None: `text_column` where it has that, else as without one.
        kwargs: see `PackedDataModule`.
    """

    batch_kind: BatchKind = "texts"

    def __init__(
        self,
        path: str | list[str] | None = None,
        sources: list[TextSource] | None = None,
        text_column: str | None = None,
        vocab_size: int | None = None,
        prompt_len: int = 32,
        val_text_column: str | None = None,
        fim: FillInTheMiddle | None = None,
        masking: Masking | None = None,
        spans: SpanCorruption | None = None,
        filters: list[TextFilter] | None = None,
        length_curriculum: LengthCurriculum | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.sources = sources
        self.text_column = text_column
        self.vocab_size = vocab_size
        self.prompt_len = prompt_len
        self.val_text_column = val_text_column
        self.fim = fim if fim is not None and fim.rate else None
        self.masking = masking
        if masking is not None:
            self.batch_kind, self.is_causal = "masked texts", False
        self.spans = spans
        if spans is not None:
            self.batch_kind = "texts with spans taken out"
        self.chain = Chain(filters) if filters else None
        self.filter_report: Path | None = None
        self.length_curriculum = length_curriculum
        self._infilling: Infilling | None = None
        self._masks: Masks | Spans | None = None

    def check_settings(self) -> None:
        """As every DataModule over packed rows, and what only texts have."""
        super().check_settings()
        if self.sources is not None and self.text_column is not None:
            raise DataError("text_column: with sources, name it in the source that it belongs to")
        if self.val_text_column is not None and self.val_path is None:
            raise DataError("val_text_column: it is that of val_path, which is not given")
        if self.tokenizer_name is not None and self.vocab_size is not None:
            raise DataError("tokenizer and vocab_size: a named tokenizer has its vocabulary; leave out vocab_size")
        given = {"fim": self.fim, "masking": self.masking, "spans": self.spans}
        objectives = {name: each for name, each in given.items() if each is not None}
        if len(objectives) > 1:
            raise DataError(f"{' and '.join(objectives)}: give one of them; each is an objective of its own")
        for each in objectives.values():
            each.check()
        if self.spans is not None and not self.document_mask:
            raise DataError("document_mask: with spans, documents that share a row never see each other; leave it out")
        if self.chain is not None:
            self.chain.check()
        if self.length_curriculum is not None:
            if objectives:
                raise DataError(f"length_curriculum and {next(iter(objectives))}: give one of them (both are given)")
            self.length_curriculum.check(self.seq_len)

    def limits(self) -> dict[str, tuple[int, int]]:
        """With those of a tokenizer that is trained, and of prompts."""
        own = {
            "vocab_size": (self.vocab_size or DEFAULT_VOCAB_SIZE, SMALLEST_VOCAB),
            "prompt_len": (self.prompt_len, 1),
        }
        limits = super().limits() | own
        return limits if self.fim is None else limits | {"seq_len": (self.seq_len, LEAST_TO_FILL_IN)}

    def source_of(self, path: str) -> TextSource:
        """A path, read at `text_column`."""
        return TextSource(path, text_column=self.text_column)

    def val_source_of(self, path: str) -> TextSource:
        """A path to validate on, read at `val_text_column`."""
        own = self.val_text_column
        return OtherTextSource(path, text_column=self.text_column) if own is None else TextSource(path, text_column=own)

    def peek(self, source: TextSource, root: Path) -> None:
        """Reads the first records."""
        peek_texts(source, root, self.on_bad_record)

    def find_units(self, source: TextSource, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read, with the column to read."""
        return text_units(source, root, look_again)

    def make_tokenizer(self, units: list[Unit], root: Path) -> PreTrainedTokenizerFast:
        """The one that is named, else one trained from the text, which gets what the objective needs."""
        if self.tokenizer_name is not None:
            tokenizer = load_tokenizer(self.tokenizer_name, self.new_tokens)
        else:
            tokenizer = trained_tokenizer(
                units, self.vocab_size or DEFAULT_VOCAB_SIZE, root, self.on_bad_record, self.chain
            )
            if self.fim is not None:
                tokenizer.add_tokens(self.fim.new_markers.names(), special_tokens=True)
            if self.masking is not None:
                tokenizer.add_special_tokens({"mask_token": MASK})
            if self.spans is not None:
                names = [self.spans.sentinel.format(number) for number in range(MOST_SENTINELS)]
                tokenizer.add_tokens(names, special_tokens=True)
        if self.fim is not None:
            self._infilling = Infilling(self.fim, tokenizer, self.seq_len, self.seed)
        if self.masking is not None:
            self._masks = Masks(self.masking, tokenizer, self.seed)
        if self.spans is not None:
            self._masks = Spans(self.spans, tokenizer, self.seq_len, self.seed)
        return tokenizer

    def make_draw(self, part: Part) -> Draw | None:
        """Rearranges documents in training, or hides tokens, or takes some out."""
        return self._masks or (self._infilling if part == "train" else None)

    def room(self) -> tuple[int, int]:
        """For markers."""
        return (0, 0) if self.fim is None else room(self.fim)

    def make_encoder(self, tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
        """Each text framed by what begins and what ends a document."""
        return TextEncoder.of(tokenizer, needs_end=self.masking is None)

    def make_shards(self, tokenizer: PreTrainedTokenizerFast, train: list[Unit], others: list[Unit]) -> list[Shard]:
        """As every DataModule over packed rows, and what is trained on goes through the filters."""
        if self.chain is None:
            return super().make_shards(tokenizer, train, others)
        plain = self.make_encoder(tokenizer)
        encoder = FilteredTextEncoder.around(plain, self.chain)
        shards = tokenize(train, encoder, self.root, self.on_bad_record)
        kept, self.filter_report = keep(shards, self.chain, encoder.tokenizer, self.root)
        return kept + tokenize(others, plain, self.root, self.on_bad_record)

    def report(self) -> None:
        """With what the filters took."""
        super().report()
        if self.filter_report is not None:
            for line in [*table(read_report(self.filter_report)), f"  with examples: {self.filter_report}"]:
                rank_zero_info(f"  {line}")

    def training_loader(self, rows: Dataset, order: Order, collate: Collate, **options: Any) -> ResumableLoader:
        """With documents that are cut at first, where they are to be.

        Raises:
            DataError: something is kept of each row elsewhere, as it is without cuts.
        """
        if self.length_curriculum is not None:
            if self.numbers_rows:
                raise DataError(
                    "length_curriculum: rows are cut otherwise than a teacher's cache has them: leave one of them out"
                )
            options["finish"] = Cutter(self.length_curriculum, self.seq_len)
        return super().training_loader(rows, order, collate, **options)

    def rows_key(self) -> str:
        """With how rows are cut."""
        return self.key_with_lengths(super().rows_key())

    def key_with_lengths(self, key: str) -> str:
        """What names rows, and how they are cut."""
        curriculum = self.length_curriculum
        return key if curriculum is None else key_of(key, "lengths", curriculum.start, curriculum.tokens)

    def make_collator(self) -> Collate:
        """With spans, of what is read and what is written."""
        return super().make_collator() if self.spans is None else SpanCollator(self.pad_token_id)

    def preview(self, num_records: int) -> Iterator[str]:
        """With spans, both sides of each document."""
        if not isinstance(self._masks, Spans):
            yield from super().preview(num_records)
            return
        assert self.tokenizer is not None
        documents = Documents(self._train)
        yield from pairs_in_words(documents, self._masks, self.tokenizer, num_records)
        yield from statistics_in_words(documents)

    def make_prompts(self, sources: Packed) -> DocumentPrompts:
        """The beginnings of the texts."""
        assert self.tokenizer is not None
        num_suffix = len(framing(self.tokenizer, self.is_causal).suffix)
        return DocumentPrompts(
            Documents(sources), partial(beginning, num_tokens=self.prompt_len, num_suffix=num_suffix)
        )

    def in_words(self, counts: dict[str, float]) -> str:
        """What there is to read, and what packing did to it."""
        return (
            f"{counts['num_documents']:,} documents, {counts['num_tokens']:,} tokens"
            f" ({counts['bytes_per_token']:.2f} bytes each) in {counts['num_rows']:,} rows of {self.seq_len:,};"
            f" {counts['padded_share']:.2%} padded, nothing cropped,"
            f" {counts['too_long_share']:.1%} of the documents longer than a row"
        )


def beginning(document: Piece, num_tokens: int, num_suffix: int) -> np.ndarray:
    """The first tokens of a text, at least one, without what ends it."""
    return document.ids[: min(num_tokens, max(1, len(document.ids) - num_suffix))]
