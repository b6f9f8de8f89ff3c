"""Conversations for supervised fine-tuning: any instruction data to packed rows in which only replies are learned."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.chat_encoder import ChatEncoder
from datamodules.chat_template import ChatTemplate, Turns, find_template
from datamodules.collate import Piece
from datamodules.dataset import Documents, Prompts
from datamodules.errors import DataError
from datamodules.packed import Packed, PackedDataModule
from datamodules.record_source import RecordSource, peek_records, record_units
from datamodules.records import Reasoning
from datamodules.rows import TooLong
from datamodules.tokenizer import bare, load_tokenizer
from datamodules.units import Unit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_SEQ_LEN = 2048


class InstructionDataModule(PackedDataModule):
    """Learns from conversations: finds out how the records hold them, writes them down by the chat template, and packs
    them into full rows in which every conversation sees itself alone.

    Read are .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders and globs of them, the embedded pairs
    `python_pairs`, and data sets of the Hugging Face hub. A record is a list of messages (`messages`, ShareGPT's
    `conversations`), an Alpaca `instruction`, a `prompt` with its `completion`, or a `question` with its `answer`.
    By default 0.01 of the conversations validate.

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        sources: the same with weights and options for each; excludes `path`.
        columns: how columns are called that have other names, such as `{question: frage, answer: antwort}`.
        template: a chat template by name (`chatml`, `llama3`, `mistral`) or file. None: the tokenizer's own; where it
            has none but the tokens of ChatML, `chatml`. It is saved with the model.
        turns: what is learned: every reply (`assistant`), the `last` one, or `all` of the text.
        reasoning: what becomes of the thoughts before a reply: `train`, `mask` (read, not learned) or `drop`.
        too_long: what becomes of a conversation longer than a row: `drop` leaves it out, `left` and `right` cut off its
            beginning or its end, `split` cuts it into several rows. All are counted. By default it is left out, since a
            reply without its question or its end teaches something else.
        seq_len: T, tokens of a row.
        kwargs: see `PackedDataModule`.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        sources: list[RecordSource] | None = None,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        turns: Turns = "assistant",
        reasoning: Reasoning = "train",
        too_long: TooLong = "drop",
        seq_len: int = DEFAULT_SEQ_LEN,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, seq_len=seq_len, **kwargs)
        self.sources = sources
        self.columns = columns
        self.template = template
        self.turns = turns
        self.reasoning = reasoning
        self.too_long = too_long

    def check_settings(self) -> None:
        """As every DataModule over packed rows, and what only conversations have."""
        super().check_settings()
        if self.sources is not None and self.columns is not None:
            raise DataError("columns: with sources, name them in the source that they belong to")
        if self.tokenizer_name is None:
            raise DataError("tokenizer: none is named; give --tokenizer, or --model.backbone.path with one in it")
        _ = self._encoder

    def source_of(self, path: str) -> RecordSource:
        """A path, read with `columns`."""
        return RecordSource(path, columns=self.columns)

    def peek(self, source: RecordSource, root: Path) -> None:
        """Reads and writes down the first records."""
        peek_records(source, root, self.on_bad_record, self._encoder)

    def find_units(self, source: RecordSource, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read, with the shape of the records."""
        return record_units(source, root, look_again)

    def make_tokenizer(self, units: list[Unit], root: Path) -> PreTrainedTokenizerFast:
        """The one that is named, with the chat template, and with the end of a turn as its EOS."""
        return self._chat_tokenizer

    def make_encoder(self, tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
        """Conversations by the chat template."""
        return self._encoder

    @cached_property
    def _chat_tokenizer(self) -> PreTrainedTokenizerFast:
        assert self.tokenizer_name is not None
        tokenizer = load_tokenizer(self.tokenizer_name)
        tokenizer.chat_template = find_template(tokenizer, self.template)
        # A reply ends with it, so that is where whoever loads the model has to stop.
        tokenizer.eos_token = template_of(tokenizer).end_of_turn()
        return tokenizer

    @cached_property
    def _encoder(self) -> ChatEncoder:
        template = template_of(self._chat_tokenizer)
        own = {"turns": self.turns, "reasoning": self.reasoning}
        return ChatEncoder(bare(self._chat_tokenizer), **(vars(template) | own))

    def make_prompts(self, sources: Packed) -> Prompts:
        """The conversations up to their last reply."""
        return Prompts(Documents(sources), prompt_of)

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first validation prompts (training's where there are none), for samples in passing."""
        prompts = self.make_prompts(self._val or self._train)
        return [prompts[number].tolist() for number in range(min(count, len(prompts)))]

    def in_words(self, facts: dict[str, float]) -> str:
        """What there is to learn, and what packing did to it."""
        too_long = f"{facts['num_too_long']:,} longer than a row (too_long={self.too_long})"
        return (
            f"{facts['num_documents']:,} conversations, {facts['num_tokens']:,} tokens, {facts['trained_share']:.1%} of"
            f" them learned, in {facts['num_rows']:,} rows of {self.seq_len:,}; {facts['padded_share']:.2%} padded;"
            f" {too_long if facts['num_too_long'] else 'none longer than a row'}"
        )


def prompt_of(conversation: Piece) -> np.ndarray:
    """The ids of a conversation before its last learned reply, whose thoughts are the model's to find."""
    return conversation.ids[: conversation.prompt]


def template_of(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The tokenizer's own template, with what it may name and what a text must not spell."""
    assert isinstance(tokenizer.chat_template, str)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(tokenizer.chat_template, names, sorted(special | set(tokenizer.all_special_tokens)))
