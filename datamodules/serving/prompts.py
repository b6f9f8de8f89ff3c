"""Prompts by number from the cache, which of them validate, and batches of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from datamodules.contract import ContinuationBatch, PromptBatch
from datamodules.encoding.prompts import Prompt, merged
from datamodules.serving.collate import PromptCollator
from datamodules.storage.held_out import held_out
from datamodules.storage.rows import Selection


class Prompts(Dataset[Prompt]):
    """Prompts by number, read from Arrow files by memory mapping; -1 is left out of a batch.

    Args:
        sources: of each source the files that `write_prompts` wrote.
        numbers: those of the prompts that count, through all files, in their order.
        num_too_long: of each source the prompts that were left out.
    """

    def __init__(
        self, sources: Sequence[Sequence[Path]], numbers: np.ndarray, num_too_long: Sequence[int] = ()
    ) -> None:
        self.sources = sources
        self.files = [file for files in sources for file in files]
        self.numbers = numbers
        self.num_too_long = num_too_long

    @cached_property
    def num_rows(self) -> list[int]:
        """Prompts of each source."""
        return _by_source(self.numbers, self.sources)

    @cached_property
    def table(self) -> pa.Table:
        """All files; mapped anew in each process."""
        return _open(self.files)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each prompt."""
        return _lengths(self.table)[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Prompt:
        place = int(self.numbers[number])
        row = self.table.slice(place, 1)
        said, columns, read = json.loads(row["record"][0].as_py())
        return Prompt(row["ids"].combine_chunks().flatten().to_numpy(), said, columns, read, place)

    def __getitems__(self, numbers: list[int]) -> list[Prompt]:
        return [self[number] for number in numbers if number >= 0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("table", "lengths")}


@dataclass(frozen=True)
class PromptBatchCollator:
    """Makes a batch of prompts, padded on the left as `PromptCollator` does, with what a reward has to know."""

    pad_token_id: int

    def __call__(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """B may be 0."""
        none = torch.zeros(0, 0, dtype=torch.int64)
        padded: ContinuationBatch = {"prompt_ids": none, "attention_mask": none}
        if prompts:
            padded = PromptCollator(self.pad_token_id)([prompt.ids for prompt in prompts])
        return {
            **padded,
            "prompts": [prompt.said for prompt in prompts],
            "numbers": [prompt.number for prompt in prompts],
            "columns": merged([prompt.columns for prompt in prompts]),
        }


def split_prompts(sources: Sequence[Sequence[Path]], max_tokens: int, share: float) -> tuple[Prompts, Prompts]:
    """Train and validation: the `share` of prompts with the smallest hashes validates, copies on the same side."""
    table = _open([file for files in sources for file in files])
    short = _lengths(table) <= max_tokens
    hashes = np.concatenate([np.empty(0, np.uint64), *(c.to_numpy() for c in table["hash"].chunks)])
    point, exceptions = held_out([hashes[short]], int(short.sum()), share)
    validates = Selection(high=point, exceptions=exceptions).mask(hashes)
    train, val = (np.flatnonzero(short & side) for side in (~validates, validates))
    return Prompts(sources, train, _by_source(np.flatnonzero(~short), sources)), Prompts(sources, val)


def _by_source(numbers: np.ndarray, sources: Sequence[Sequence[Path]]) -> list[int]:
    """How many of these prompts, in their order, are each source's."""
    ends = np.cumsum([len(_open(files)) for files in sources])
    return np.diff(np.searchsorted(numbers, ends), prepend=0).tolist()


def _open(files: Sequence[Path]) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files])


def _lengths(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    chunks = [pc.list_value_length(chunk).to_numpy(zero_copy_only=False) for chunk in table["ids"].chunks]
    return np.concatenate([np.empty(0, np.int32), *chunks]).astype(np.int64)
