"""Preference pairs in packed rows in which both responses see their prompt once, and single answers with a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.chat import ChatDataModule
from datamodules.contract import MismatchBatch, Part
from datamodules.encoding.cutting import Cut
from datamodules.encoding.pad_token import pad_apart
from datamodules.encoding.pairs import PAIR, PairEncoder
from datamodules.encoding.tokenizer import bare
from datamodules.errors import DataError
from datamodules.packed import Packed
from datamodules.records.preferences import FIRST, SECOND, TIE
from datamodules.records.record_source import OtherSource, RecordSource
from datamodules.records.shapes import PREFERENCE_SHAPES
from datamodules.records.single_answers import DESIRABLE, UNDESIRABLE, is_single, refuse_singles
from datamodules.serving.judging import JudgedPair, held_out, judged_pairs
from datamodules.serving.labels import count_singles, documents_in_words, labelled_answers
from datamodules.serving.loader import EvaluationLoader
from datamodules.serving.mismatches import MismatchCollator, MismatchedRows, parts
from datamodules.serving.pair_preview import preview_pairs
from datamodules.serving.pairs import PairCollator, PairRows, Pairs
from datamodules.serving.scoring import Conversations
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.splits import ALL
from datamodules.sources.units import Unit
from datamodules.storage.near_duplicates import resembling
from datamodules.storage.rows import Selection, TooLong, split_documents
from datamodules.storage.shards import Shard
from datamodules.templates.chat_template import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEAST_SHARED = 8
"""Tokens that have to be common before a prompt is computed once for both responses (benchmarks/shared_prompts.py)."""

MEANINGS = (FIRST, SECOND, TIE, DESIRABLE, UNDESIRABLE)
NEVER = 2**31
REFERENCE_ROWS = 64


class PreferenceDataModule(ChatDataModule):
    """Learns from preference pairs: finds out how the records hold them, writes both conversations down by the chat
    template, and packs the pairs into full rows without padding between them.

    A record has `chosen` and `rejected` behind a `prompt`, `messages`, ShareGPT's `conversations` or a `question`; or
    they are whole conversations that begin alike (messages, or Anthropic's `Human:` and `Assistant:`); or it has
    `response_j` and `response_k`, or `output_1` and `output_2` with a `label`, which may be a tie. A `margin` and the
    responses' scores are read where they are there. Pairs with an empty response, or of two equal responses, say
    nothing: they are left out and counted. By default 0.05 of the pairs validate, and no prompt there resembles one
    of training's.

    A record may also have one answer and a `label` that says whether it is desirable, in the shapes of
    `InstructionDataModule`. These single answers train KTO alone, with pairs of other sources or without.

    Args:
        too_long: what becomes of a pair longer than a row: `drop` leaves it out, `left` cuts off the beginning of the
            prompt, `right` the ends of the responses. Pairs that cutting makes equal are left out and counted.
        share_prompts: compute what both responses begin with once for both, where it is long enough to pay. Needs the
            default `model.backbone.attention`.
        labels: what the values of a `label` mean that are not 1, 2 or `tie`, such as `{"0": first, "1": second}`; of
            single answers, those that are not true or false, 1 or 0, good or bad, such as `{"5": desirable}`.
        score_margins: take the difference of the responses' scores as the margin.
        predict_path: conversations to score, for `predict`; `path` is then not needed. The shapes are those of
            `InstructionDataModule`; the columns that `predict` adds (`scoring.ADDED`) must not be among them.
        args, kwargs: see `ChatDataModule`.
    """

    batch_kind = "preference pairs"
    default_val_share = 0.05
    too_long: TooLong = "drop"  # of the packing: cutting is the encoder's affair, which knows the parts of a pair
    shapes = PREFERENCE_SHAPES

    def __init__(
        self,
        *args: Any,
        too_long: Cut = "drop",
        share_prompts: bool = True,
        labels: dict[str, Literal["first", "second", "tie", "desirable", "undesirable"]] | None = None,
        score_margins: bool = False,
        predict_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.cut = too_long
        self.share_prompts = share_prompts
        self.labels = labels
        self.score_margins = score_margins
        self.predict_path = predict_path
        self._needs_pairs: str | None = None

    @property
    def _only_predicts(self) -> bool:
        return self.predict_path is not None and self.path is None and self.sources is None

    def check(self) -> None:
        """As every DataModule over packed rows; without pairs, only what is to be scored."""
        if self.predict_path is not None:
            self.check_tokenizer()
            self._conversations().check()
        if not self._only_predicts:
            super().check()

    def check_settings(self) -> None:
        """As every DataModule of conversations, and the words for labels."""
        super().check_settings()
        if not self.document_mask:
            raise DataError("document_mask: pairs must not see each other; leave it out")
        for label, meaning in (self.labels or {}).items():
            if meaning not in MEANINGS:
                raise DataError(f"labels: {label!r} can mean {', '.join(MEANINGS)}, not {meaning!r}")

    def require_pairs(self, who: str) -> None:
        """Refuse single answers, here and whenever more is read.

        Args:
            who: needs pairs, for the message.

        Raises:
            DataError: there are single answers.
        """
        self._needs_pairs = who
        self._check_pairs(unit for sources in self._units.values() for units in sources for unit in units)

    def _check_pairs(self, units: Iterable[Unit]) -> None:
        if self._needs_pairs is not None:
            refuse_singles(units, self._needs_pairs)

    @property
    def read(self) -> Callable[[Unit, BadRecords], Iterator[Any]]:
        """The records as the chat template writes them, single ones where they may be."""

        def written(unit: Unit, bad: BadRecords) -> Iterator[Any]:
            self._check_pairs([unit])
            return self.encoder.written(unit, bad)

        return written

    def find_units(self, source: RecordSource, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read in a source, with the shape of its records."""
        units = super().find_units(source, root, look_again)
        self._check_pairs(units)
        return units

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """transformers reads a reward at the last token that is not padding, so padding must be no text's end."""
        tokenizer.pad_token = pad_apart(tokenizer)

    @cached_property
    def encoder(self) -> PairEncoder:
        """Pairs by the chat template."""
        least_shared = LEAST_SHARED if self.share_prompts else NEVER
        return PairEncoder(
            bare(self.chat_tokenizer),
            longest=self.seq_len,
            too_long=self.cut,
            least_shared=least_shared,
            labels=dict(self.labels or {}),
            score_margins=self.score_margins,
            template=vars(template_of(self.chat_tokenizer)),
        )

    def split(self, shards: list[Shard], share: float) -> tuple[Selection, Selection]:
        """By the hash of the opening question; of what validates, pairs whose prompt resembles one of training's go
        back to training.
        """
        train, val = split_documents(shards, share)
        if not share:
            return train, val
        hashes = np.concatenate([shard.documents()["hash"] for shard in shards])
        non_empty = [shard for shard in shards if shard.statistics["num_documents"]]
        held_out = val.mask(hashes)
        near = resembling(
            lambda band: np.concatenate([shard.details(PAIR)[:]["bands"][:, band] for shard in non_empty]), held_out
        )
        if near.any():
            rank_zero_info(
                f"{near.sum():,} of {held_out.sum():,} validation pairs go to training: its prompts resemble theirs"
            )
        if (near == held_out).all():
            raise DataError(
                "val_share: no pair is left to validate on, as each one's prompt resembles one of training's; raise it,"
                " name a val_path, or set val_share=0"
            )
        exceptions = (*val.exceptions, *np.unique(hashes[near]).tolist())
        return Selection(train.low, train.high, exceptions), Selection(val.low, val.high, exceptions)

    def prepare_data(self) -> None:
        """Builds what the cache lacks."""
        if self._only_predicts:
            self.check()
        else:
            super().prepare_data()

    def setup(self, stage: str) -> None:
        """Opens the tokenizer and the rows."""
        if self._only_predicts:
            self.tokenizer = self.chat_tokenizer
        else:
            super().setup(stage)

    def make_rows(self, sources: Packed) -> PairRows:
        """The packed rows of these sources, each row as its pairs."""
        return PairRows(sources)

    def make_collator(self) -> PairCollator:
        """What makes a batch of them."""
        return PairCollator(self.seq_len, self.pad_token_id)

    def in_order(self, part: Part) -> EvaluationLoader | list:
        """All pairs of a part, each once, in the order of the rows."""
        rows = self.make_rows(self._part(part))
        return self.evaluation_loader(rows, self.make_collator()) if len(rows) else []

    def mismatches(self, part: Part, count: int | None = None) -> Iterable[MismatchBatch]:
        """Each prompt with an answer to another one, in the batches of the part.

        Args:
            part: in training the batches from the one on that was handed out last; else all that validates.
            count: of the batches; None for all.
        """
        rows, collate = MismatchedRows(self._part(part), self.seq_len), MismatchCollator(self.pad_token_id)
        if part == "train" and count is not None and self._train_loader is not None:
            return self._train_loader.again(rows, collate, count)
        return islice(self.evaluation_loader(rows, collate), count) if len(rows) else []

    def num_pairs(self, part: Part) -> int:
        """In all rows of a part."""
        return self.make_rows(self._part(part)).num_pairs

    def num_labelled(self, part: Part) -> tuple[int, int]:
        """How many answers of a part are desirable, and how many are not: of a pair, one each."""
        return labelled_answers(self.statistics.get(part, {}))

    def count(self, part: Part) -> dict[str, float]:
        """With `num_desirable` and `num_undesirable` where there are single answers."""
        sources = zip(self._part(part), self._units[part], strict=False)  # what is added are pairs
        singles = [shards for (_, shards), units in sources if any(is_single(unit.shape) for unit in units)]
        return super().count(part) | count_singles(singles, self.selections[part])

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first validation prompts (training's where there are none), for samples in passing."""
        pairs = Pairs(self._val or self._train)
        return [parts(pairs[number], 0)[0][0].tolist() for number in range(min(count, len(pairs)))]

    def reference_dataloader(self) -> EvaluationLoader | list:
        """The pairs that rewards are normalized on: those of validation, else the first rows of training."""
        if self._val:
            return self.val_dataloader()
        rows = self.make_rows(self._train)
        return self.evaluation_loader(rows, self.make_collator(), min(len(rows), REFERENCE_ROWS))

    def predict_dataloader(self) -> Conversations:  # type: ignore[override]
        """Rows of conversations to score, of about equal length in each batch."""
        if self.predict_path is None:
            raise DataError("predict_path: name the conversations to score")
        return self._conversations()

    def _conversations(self) -> Conversations:
        assert self.predict_path is not None
        return Conversations(
            replace(OtherSource(self.predict_path, columns=self.columns), split=ALL),
            self.chat_tokenizer,
            self.seq_len,
            self.batch_size,
            self.on_bad_record,
            self.root,
            **self.data_ranks(),
        )

    def judged_pairs(self, left_out: Counter[str]) -> Iterator[JudgedPair]:
        """The pairs to judge a reward model by, streaming: each file's part for testing or validation where the names
        tell of one, else all of it; none is cut.

        Args:
            left_out: takes note of how many pairs were left out, by the reason.

        Raises:
            DataError: there are none, or a record cannot be read.
        """
        self.check_settings()
        self.require_pairs("judging a reward model")
        for source in map(held_out, self.train_sources):
            yield from judged_pairs(self.find_units(source, self.root, look_again=True), self.encoder, left_out)

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print: the first training pairs as the model will see them, and the statistics of all."""
        assert self.tokenizer is not None
        return preview_pairs(Pairs(self._train), self.tokenizer, num_records)

    def in_words(self, counts: dict[str, float]) -> str:
        """What there is to learn, and what packing did to it."""
        too_long = f"{counts['num_dropped']:,} longer than a row left out (too_long={self.cut})"
        return (
            f"{documents_in_words(counts)}, {counts['num_tokens']:,} tokens in {counts['num_rows']:,} rows of"
            f" {self.seq_len:,}; {counts['padded_share']:.2%} padded;"
            f" {too_long if counts['num_dropped'] else 'none longer than a row'}"
        )
