"""Prompts for reinforcement learning, and the columns that a reward needs to judge their completions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.cache import key_of, made_folder
from datamodules.encoding.prompts import PromptEncoder, write_prompts
from datamodules.encoding.tokenizer import bare, framing, load_tokenizer
from datamodules.errors import DataError
from datamodules.record_data import RecordDataModule
from datamodules.records.own_keys import unread_in_words
from datamodules.records.record_source import RecordSource
from datamodules.records.shapes import PROMPT_SHAPES
from datamodules.serving.loader import EvaluationLoader, Order, ResumableLoader
from datamodules.serving.orders.grouped import GroupedOrder
from datamodules.serving.orders.order import ShuffledOrder
from datamodules.serving.prompts import PromptBatchCollator, Prompts, split_prompts
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit
from datamodules.storage.held_out import unlike_share
from datamodules.templates.chat_template import template_of
from datamodules.templates.choice import set_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = 5  # of what is kept in the cache


class PromptDataModule(RecordDataModule):
    """Reads prompts, and hands them out in batches of similar length and a resumable order.

    Records have the shapes of `InstructionDataModule` and `PreferenceDataModule`, with or without responses, and ask
    here with the same tokens as there: a text (`prompt`, `question`, `instruction`, `input`) with its `system`,
    `history`, `context` and `tools`, or messages, of which the assistant's last reply is left out. All columns but the
    one that the prompt stands in are passed on to the rewards.

    Args:
        path: .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders and globs of them, or a hub data set;
            several paths are read as one, every prompt once an epoch.
        sources: the same with weights and options for each; excludes `path`.
        column: where the prompt stands, if under another name; short for `columns={prompt: NAME}`.
        columns: how columns are called that have other names, such as `{question: frage}`. A list of columns is read as
            one text, in that order: `{prompt: [body, question]}`.
        template: a chat template by name (`chatml`, `llama3`, `mistral`) or file. None: the tokenizer's own.
        chat: whether a text is what a user says, to be written down by the chat template. None: where there is a
            template. With false a text is gone on with as it stands.
        max_prompt_tokens: longer prompts are left out, and counted.
        val_columns: as `columns`, for `val_path`. None: `columns` where it has them, else the usual names.
        kwargs: see `ResumableDataModule`. By default 0.05 of the prompts validate.

    Attributes:
        record_check: from a record's columns to why rewards could not judge a completion of it, or None; such a record
            is a bad one. Its `key` names it in the cache. The module that trains sets it.
    """

    batch_kind = "prompts"
    default_val_share = 0.05
    shapes = PROMPT_SHAPES

    def __init__(
        self,
        path: str | list[str] | None = None,
        sources: list[RecordSource] | None = None,
        column: str | None = None,
        columns: dict[str, str | list[str]] | None = None,
        template: str | None = None,
        chat: bool | None = None,
        max_prompt_tokens: int = 512,
        batch_size: int = 16,
        val_columns: dict[str, str | list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, batch_size=batch_size, **kwargs)
        self.sources = sources
        self.column = column
        self.columns = columns
        self.template = template
        self.chat = chat
        self.max_prompt_tokens = max_prompt_tokens
        self.val_columns = val_columns
        self.record_check: Any = None
        self._train = self._val = Prompts([], np.empty(0, np.int64))

    @property
    def column_names(self) -> dict[str, str | list[str]] | None:
        """`columns`, or what `column` is short for."""
        return self.columns if self.column is None else {"prompt": self.column}

    def check_settings(self) -> None:
        """As every DataModule of records, and what only prompts have."""
        if self.column is not None and self.columns is not None:
            raise DataError(
                "column and columns: give one of them (both are given); column=NAME is columns={prompt: NAME}"
            )
        super().check_settings()

    def limits(self) -> dict[str, tuple[int, int]]:
        """With the longest prompt."""
        return {"max_prompt_tokens": (self.max_prompt_tokens, 1)} | super().limits()

    @property
    def read(self) -> Callable[[Unit, BadRecords], Iterator[Any]]:
        """The prompts of a unit."""
        return self.encoder.prompts

    def build(self, look_again: bool) -> None:
        """Tokenizes what the cache lacks, and decides what validates."""
        files = [self._files_of(source, look_again) for source in self.train_sources]
        held_out = [self._files_of(source, look_again) for source in self.val_sources]
        share = self.share_to_hold_out()
        self._train, self._val = split_prompts(files, self.max_prompt_tokens, share)
        self._check_not_empty("path", self.train_sources, self._train)
        if held_out:
            self._val = split_prompts(held_out, self.max_prompt_tokens, 0.0)[0]
            self._check_not_empty("val_path", self.val_sources, self._val)
        if words := unlike_share(share, len(self._val), len(self._train) + len(self._val)):
            rank_zero_warn(words)
        self.tokenizer = self.chat_tokenizer

    def _check_not_empty(self, name: str, sources: Sequence[RecordSource], prompts: Prompts) -> None:
        """Raise `DataError` where nothing is left of all sources, or of one that has a weight."""
        num_prompts = prompts.num_rows
        for source, files, count, too_long in zip(
            sources, prompts.sources, num_prompts, prompts.num_too_long, strict=True
        ):
            if count or (sum(num_prompts) and not source.weight):
                continue
            if too_long:
                raise DataError(
                    f"max_prompt_tokens: all {too_long:,} prompts of {source.path!r} are longer than"
                    f" {self.max_prompt_tokens} tokens; raise it"
                )
            why = f" ({skipped})" if (skipped := _skipped(files)) else "; give more, or val_share=0"
            raise DataError(f"{name}: {source.path!r} leaves no prompt{why}")

    def report(self) -> None:
        """Says how many prompts there are, and what was left out."""
        rank_zero_info(f"Prompts: {len(self._train):,} to train on, {len(self._val):,} to validate on")
        for line in _unread([*self._train.files, *self._val.files]):
            rank_zero_info(line)
        if skipped := _skipped([*self._train.files, *self._val.files]):
            rank_zero_warn(skipped)
        if dropped := sum(self._train.num_too_long) + sum(self._val.num_too_long):
            rank_zero_warn(f"{dropped:,} prompts are longer than max_prompt_tokens={self.max_prompt_tokens}: left out.")

    def _files_of(self, source: RecordSource, look_again: bool) -> list[Path]:
        return [self._file_of(unit, look_again) for unit in self.find_units(source, self.root, look_again)]

    def _file_of(self, unit: Unit, look_again: bool) -> Path:
        encoder = self.encoder
        template = None if encoder.template is None else asdict(encoder.template)
        parts = [unit.digest, unit.start, unit.stop, encoder.tokenizer.to_str(), encoder.prefix]
        check = None if self.record_check is None else self.record_check.key
        key = key_of(VERSION, *parts, template, encoder.chat, unit.shape, unit.columns, self.on_bad_record, check)
        folder = self.root / "prompts" / key

        def make(temporary: Path) -> None:
            statistics = write_prompts(temporary / "prompts.arrow", unit, encoder, self.on_bad_record)
            (temporary / "facts.json").write_text(json.dumps(statistics))

        return made_folder(folder, "prompts", make, look_again) / "prompts.arrow"

    @cached_property
    def chat_tokenizer(self) -> PreTrainedTokenizerFast:
        """The named tokenizer, with the chat template where one is used."""
        assert self.tokenizer_name is not None
        tokenizer = load_tokenizer(self.tokenizer_name, self.new_tokens)
        if self.template is not None or self.chat or (self.chat is None and tokenizer.chat_template):
            set_template(tokenizer, self.template)
            tokenizer.eos_token = template_of(tokenizer).end_of_turn()
        if tokenizer.eos_token_id is None:
            raise DataError(
                "tokenizer: it has no EOS token, so that no completion could end; set one and save it again"
            )
        return tokenizer

    @cached_property
    def encoder(self) -> PromptEncoder:
        """What makes prompts of records."""
        tokenizer = self.chat_tokenizer
        template = template_of(tokenizer) if tokenizer.chat_template else None
        chat = template is not None if self.chat is None else self.chat
        return PromptEncoder(bare(tokenizer), framing(tokenizer).prefix, template, chat, self.record_check)

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers: `path`, `files` (named by their content) and their number."""
        return {"path": self.path, "files": self._file_names(), "num_prompts": len(self._train)}

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches without end, from where the checkpoint left off; see `PromptBatchCollator`."""
        order: Order = GroupedOrder(self._shuffled(), self._train.lengths, self.global_batch_size, self.seed)
        if (few := self.rows_to_overfit(len(self._train))) is not None:
            order = ShuffledOrder([few], seed=self.seed)  # ungrouped: a window would hold each of them many times
        loader = self.training_loader(self._train, order, self.make_collator(), whole_batches=True)
        if left_over := order.epoch_len % self.global_batch_size:
            rank_zero_info(
                f"Prompts: the last {left_over:,} of an epoch go before the next one's, as every batch is full; the"
                " last epoch leaves them out"
            )
        return loader

    def _shuffled(self) -> ShuffledOrder:
        """With weights by source, where these would not serve every prompt once an epoch anyway."""
        weighted = ShuffledOrder(self._train.num_rows, self.weights, self.seed)
        whole = np.array_equal(weighted.counts, weighted.num_rows)
        return ShuffledOrder([len(self._train)], seed=self.seed) if whole else weighted

    def val_dataloader(self) -> EvaluationLoader | list:
        """The held-out prompts in a fixed order, equally many batches on each rank (the last may be empty)."""
        return self.evaluation_loader(self._val, self.make_collator()) if len(self._val) else []

    def predict_dataloader(self) -> EvaluationLoader | list:
        """The held-out prompts."""
        return self.val_dataloader()

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first held-out prompts (training's where there are none), for samples in passing."""
        prompts = self._val if len(self._val) else self._train
        return [prompts[number].ids.tolist() for number in range(min(count, len(prompts)))]

    def preview(self, num_records: int) -> list[str]:
        """Lines to print: the first prompts as the model will see them, and what else a reward is given."""
        assert self.tokenizer is not None
        lines = []
        for number in range(min(num_records, len(self._train))):
            prompt = self._train[number]
            lines += [
                f"--- prompt {number + 1}: {len(prompt.ids):,} tokens, from {_listed(prompt.read)}",
                str(self.tokenizer.decode(prompt.ids)),
            ]
            lines += [f"    {name}: {value!r}" for name, value in prompt.columns.items()]
        made_of = Counter(_listed(self._train[number].read) for number in range(len(self._train)))
        return [*lines, *(f"--- {count:,} prompts are made of {names}" for names, count in made_of.most_common())]

    def make_collator(self) -> PromptBatchCollator:
        """What makes a batch of prompts."""
        return PromptBatchCollator(self.pad_token_id)

    def rows_key(self) -> str:
        """Names the prompts, their mixture and the seed."""
        mixture = [] if self.weights is None else [self.weights, self._train.num_rows]
        return key_of(self.seed, self._file_names(), len(self._train), *mixture)

    def _file_names(self) -> list[str]:
        return [file.parent.name for file in self._train.files]


def _facts(files: Sequence[Path]) -> list[dict[str, Any]]:
    return [json.loads(file.with_name("facts.json").read_text()) for file in dict.fromkeys(files)]


def _unread(files: Sequence[Path]) -> Iterator[str]:
    """A line about what was not read; none where there was nothing."""
    counts: Counter[str] = Counter()
    for each in _facts(files):
        counts.update(each["unread"])
    return unread_in_words(counts)


def _skipped(files: Sequence[Path]) -> str | None:
    """How many bad records were skipped, and the first of them; None where there were none."""
    bad = [each for each in _facts(files) if each["num_bad"]]
    if not bad:
        return None
    return f"{sum(each['num_bad'] for each in bad):,} bad records were skipped; the first: {bad[0]['first_bad']}"


def _listed(columns: list[str]) -> str:
    return f"column {columns[0]}" if len(columns) == 1 else f"columns {', '.join(columns)}"
