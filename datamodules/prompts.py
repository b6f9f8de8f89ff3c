"""Prompts for reinforcement learning: what the model is asked, with what a reward has to know to judge its answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.cache import cache_root, key_of, made_folder
from datamodules.encoding.prompts import PromptEncoder, write_prompts
from datamodules.encoding.tokenizer import bare, framing, load_tokenizer
from datamodules.errors import DataError
from datamodules.records.own_keys import unread_in_words
from datamodules.records.record_source import OtherSource, RecordSource, record_units, with_shape
from datamodules.records.shapes import PROMPT_SHAPES
from datamodules.resumption import check_same_rows
from datamodules.serving.grouped_order import GroupedOrder
from datamodules.serving.loader import EvaluationLoader, ResumableLoader
from datamodules.serving.order import SequentialOrder, ShuffledOrder
from datamodules.serving.prompts import PromptBatchCollator, Prompts, split_prompts
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.discover import files_in_words, first_units, paths_of, sources_to_validate_on
from datamodules.sources.units import Unit
from datamodules.storage.held_out import unlike_share
from datamodules.templates.chat_template import template_of
from datamodules.templates.choice import set_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = 5  # of what is kept in the cache
PEEKED = 16


class PromptDataModule(LightningDataModule):
    """Reads prompts, and hands them out in batches of similar length and a resumable order.

    Records have the shapes of `InstructionDataModule` and `PreferenceDataModule`, with or without answers, and ask here
    with the same tokens as there: a text (`prompt`, `question`, `instruction`, `input`) with its `system`, `history`,
    `context` and `tools`, or messages, of which the assistant's last reply is left out. All columns but the one that
    the prompt stands in are passed on to the rewards.

    Args:
        path: .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders and globs of them, or a hub data set;
            several paths are read as one.
        tokenizer: a hub id, a folder or a `.gguf` file.
        column: where the prompt stands, if under another name; short for `columns={prompt: NAME}`.
        columns: how columns are called that have other names, such as `{question: frage}`. A list of columns is read as
            one text, in that order: `{prompt: [body, question]}`.
        template: a chat template by name (`chatml`, `llama3`, `mistral`) or file. None: the tokenizer's own.
        chat: whether a text is what a user says, to be written down by the chat template. None: where there is a
            template. With false a text is gone on with as it stands.
        max_prompt_tokens: longer prompts are left out, and counted.
        batch_size: prompts of a step on one rank.
        val_share: share of the prompts held out for validation, at least one; 0 for none. None: where names of files
            say that they are for validation, these validate, else 0.05. Excludes `val_path`.
        val_path: what to validate on instead, all of it; of a folder with splits what is for validation or testing.
        seed: names the order of training.
        num_workers: processes that read ahead.
        on_bad_record: `stop` at a record without a usable prompt, with its file and line, or `skip` and count it.
        cache_dir: where tokens are kept. None: `$LLM_LIGHTNING_CACHE`, else `~/.cache/llm-lightning`.

    Attributes:
        tokenizer: the tokenizer, once `setup` ran.
        record_check: from a record's columns to why rewards could not judge an answer to it, or None; such a record is
            a bad one. Its `key` names it in the cache. The module that trains sets it.
    """

    new_tokens: Sequence[str] = ()
    """Control tokens that the network gets and its tokenizer has not; set it before anything is read."""

    def __init__(
        self,
        path: str | list[str],
        tokenizer: str | None = None,
        column: str | None = None,
        columns: dict[str, str | list[str]] | None = None,
        template: str | None = None,
        chat: bool | None = None,
        max_prompt_tokens: int = 512,
        batch_size: int = 16,
        val_share: float | None = None,
        val_path: str | list[str] | None = None,
        val_columns: dict[str, str | list[str]] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.tokenizer_name = tokenizer
        self.column = column
        self.columns = columns
        self.template = template
        self.chat = chat
        self.max_prompt_tokens = max_prompt_tokens
        self.batch_size = batch_size
        self.val_share = val_share
        self.val_path = val_path
        self.val_columns = val_columns
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_record = on_bad_record
        self.cache_dir = cache_dir
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.record_check: Any = None
        self._files: list[Path] = []
        self._train = self._val = Prompts([], np.empty(0, np.int64))
        self._position = 0
        self._train_loader: ResumableLoader | None = None

    def check(self) -> None:
        """Looks at the settings and at the first records, in well under a second for local files.

        Raises:
            DataError: what is wrong, and the way out.
        """
        if self.val_path is not None and self.val_share is not None:
            raise DataError("val_path and val_share: give one of them (both are given)")
        if self.val_columns is not None and self.val_path is None:
            raise DataError("val_columns: they are those of val_path, which is not given")
        for name, least in (("max_prompt_tokens", 1), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name}: it must be at least {least}, not {getattr(self, name)}")
        if not 0 <= (self.val_share or 0) < 1:
            raise DataError(f"val_share: it must be at least 0 and below 1, not {self.val_share}")
        if self.column is not None and self.columns is not None:
            raise DataError(
                "column and columns: give one of them (both are given); column=NAME is columns={prompt: NAME}"
            )
        if self.tokenizer_name is None:
            raise DataError("tokenizer: none is named; give --tokenizer, or --model.backbone.path with one in it")
        root = cache_root(self.cache_dir)
        for source in [*self._train_sources(), *self._val_sources()]:
            for unit in with_shape(first_units(source, root), source, PROMPT_SHAPES):
                for _ in zip(range(PEEKED), self._encoder.prompts(unit, BadRecords(unit, self.on_bad_record))):  # noqa: B905
                    pass

    def prepare_data(self) -> None:
        """Builds what the cache lacks; Lightning calls it on one process of each node."""
        self.check()
        for line in files_in_words(self._train_sources(), self.val_path is None and self.val_share is None):
            rank_zero_info(line)
        for sources in (self._train_sources(), self._val_sources()):
            self._build(sources, look_again=True)

    def setup(self, stage: str) -> None:
        """Opens the prompts, from the cache where `prepare_data` ran."""
        if self.tokenizer is None:
            self._files = self._build(self._train_sources(), look_again=False)
            held_out = self._build(self._val_sources(), look_again=False)
            share = 0.05 if self.val_share is None and not held_out else self.val_share or 0.0
            self._train, self._val = split_prompts(self._files, self.max_prompt_tokens, share)
            if held_out:
                self._val = split_prompts(held_out, self.max_prompt_tokens, 0.0)[0]
            self._check_not_empty("path", self._train, self._files)
            if held_out:
                self._check_not_empty("val_path", self._val, held_out)
            self.tokenizer = self._chat_tokenizer
            if words := unlike_share(share, len(self._val), len(self._train) + len(self._val)):
                rank_zero_warn(words)
        self._position, self._train_loader = 0, None  # a checkpoint's state comes after this
        rank_zero_info(f"Prompts: {len(self._train):,} to learn from, {len(self._val):,} to validate on")
        for line in _unread([*self._train.files, *self._val.files]):
            rank_zero_info(line)
        if skipped := _skipped([*self._train.files, *self._val.files]):
            rank_zero_warn(skipped)
        dropped = self._train.num_too_long + self._val.num_too_long
        if dropped:
            rank_zero_warn(f"{dropped:,} prompts are longer than max_prompt_tokens={self.max_prompt_tokens}: left out.")

    def _check_not_empty(self, name: str, prompts: Prompts, files: list[Path]) -> None:
        if len(prompts):
            return
        where = self.path if name == "path" else self.val_path or self.path
        if prompts.num_too_long:
            raise DataError(
                f"max_prompt_tokens: all {prompts.num_too_long:,} prompts of {where!r} are longer than"
                f" {self.max_prompt_tokens} tokens; raise it"
            )
        why = f" ({skipped})" if (skipped := _skipped(files)) else "; give more, or val_share=0"
        raise DataError(f"{name}: {where!r} leaves no prompt{why}")

    def _train_sources(self) -> list[RecordSource]:
        return [RecordSource(path, columns=self._columns) for path in paths_of(self.path)]

    def _val_sources(self) -> list[RecordSource]:
        named = [self._val_source(path) for path in paths_of(self.val_path)]
        return sources_to_validate_on(self._train_sources(), named or None, self.val_share)

    def _val_source(self, path: str) -> RecordSource:
        own = self.val_columns is not None
        return RecordSource(path, columns=self.val_columns) if own else OtherSource(path, columns=self._columns)

    def _build(self, sources: list[RecordSource], look_again: bool) -> list[Path]:
        root = cache_root(self.cache_dir)
        units = [unit for source in sources for unit in record_units(source, root, look_again, PROMPT_SHAPES)]
        return [self._built(unit, root, look_again) for unit in units]

    @property
    def _columns(self) -> dict[str, str | list[str]] | None:
        return self.columns if self.column is None else {"prompt": self.column}

    def _built(self, unit: Unit, root: Path, look_again: bool) -> Path:
        encoder = self._encoder
        template = None if encoder.template is None else asdict(encoder.template)
        parts = [unit.digest, unit.start, unit.stop, encoder.tokenizer.to_str(), encoder.prefix]
        check = None if self.record_check is None else self.record_check.key
        key = key_of(VERSION, *parts, template, encoder.chat, unit.shape, unit.columns, self.on_bad_record, check)
        folder = root / "prompts" / key

        def make(temporary: Path) -> None:
            facts = write_prompts(temporary / "prompts.arrow", unit, encoder, self.on_bad_record)
            (temporary / "facts.json").write_text(json.dumps(facts))

        return made_folder(folder, "prompts", make, look_again) / "prompts.arrow"

    @cached_property
    def _chat_tokenizer(self) -> PreTrainedTokenizerFast:
        assert self.tokenizer_name is not None
        tokenizer = load_tokenizer(self.tokenizer_name, self.new_tokens)
        if self.template is not None or self.chat or (self.chat is None and tokenizer.chat_template):
            set_template(tokenizer, self.template)
            tokenizer.eos_token = template_of(tokenizer).end_of_turn()
        if tokenizer.eos_token_id is None:
            raise DataError("tokenizer: it has no EOS token, so that no answer could end; set one and save it again")
        return tokenizer

    @cached_property
    def _encoder(self) -> PromptEncoder:
        tokenizer = self._chat_tokenizer
        template = template_of(tokenizer) if tokenizer.chat_template else None
        chat = template is not None if self.chat is None else self.chat
        return PromptEncoder(bare(tokenizer), framing(tokenizer).prefix, template, chat, self.record_check)

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers: `path`, `files` (named by their content) and their number."""
        files = [file.parent.name for file in self._files]
        return {"path": self.path, "files": files, "num_prompts": len(self._train)}

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches without end, from where the checkpoint left off; see `PromptBatchCollator`."""
        ranks = self._data_ranks()
        batch_len = self.batch_size * ranks["num_ranks"]
        shuffled = ShuffledOrder([len(self._train)], seed=self.seed)
        order = GroupedOrder(shuffled, self._train.lengths, batch_len, self.seed)
        self._train_loader = ResumableLoader(
            self._train,
            order,
            self._collator,
            self.batch_size,
            **ranks,
            num_workers=self.num_workers,
            position=self.position,
            whole_batches=True,
        )
        if left_over := len(self._train) % batch_len:
            rank_zero_info(
                f"Prompts: the last {left_over:,} of an epoch go before the next one's, as every batch is full; the"
                " last epoch leaves them out"
            )
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader | list:
        """The held-out prompts in a fixed order, equally many batches on each rank (the last may be empty)."""
        if not len(self._val):
            return []
        ranks = self._data_ranks()
        order = SequentialOrder(len(self._val), self.batch_size * ranks["num_ranks"])
        return EvaluationLoader(self._val, order, self._collator, self.batch_size, **ranks)

    def test_dataloader(self) -> EvaluationLoader | list:
        """The held-out prompts."""
        return self.val_dataloader()

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

    @property
    def _collator(self) -> PromptBatchCollator:
        assert self.tokenizer is not None
        pad = self.tokenizer.pad_token_id
        return PromptBatchCollator(self.tokenizer.eos_token_id if pad is None else pad)

    def _data_ranks(self) -> dict[str, Any]:
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return {"rank": ranks["rank"], "num_ranks": ranks["num_replicas"]} if ranks else {"rank": 0, "num_ranks": 1}

    @property
    def position(self) -> int:
        """Prompts of all ranks that training has been given so far: the global sample index of the next one."""
        return self._train_loader.position if self._train_loader is not None else self._position

    def state_dict(self) -> dict[str, int | str]:
        """The global sample index, and what it counts in."""
        rows = key_of(self.seed, [file.parent.name for file in self._files], len(self._train))
        per_batch = self.batch_size * self._data_ranks()["num_ranks"]
        return {"position": self.position, "rows": rows, "per_batch": per_batch}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on from the checkpoint's position; raises `DataError` where it means nothing here."""
        check_same_rows(state, self.state_dict(), self.trainer)
        self._position, self._train_loader = int(state["position"]), None


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
