"""From packed rows to a batch of tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from datamodules.contract import ContinuationBatch, PackedBatch
from datamodules.serving.layout import Layout

IGNORE = -100  # torch's own `ignore_index`: no loss is computed there


class Piece(NamedTuple):
    """A document, or a part of one.

    Args:
        ids: (n,) token ids.
        trained: (n,) bool, which of them are in the loss; None for all.
        prompt: of a whole conversation, the tokens before its last reply.
        targets: (n,) int64, labels other than the ids, -100 for none; None where they are the ids.
    """

    ids: np.ndarray
    trained: np.ndarray | None = None
    prompt: int = 0
    targets: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """(n,) the ids that are in the loss, else -100."""
        if self.targets is not None:
            return self.targets
        return self.ids if self.trained is None else np.where(self.trained, self.ids.astype(np.int64), IGNORE)


Row: TypeAlias = list[Piece]  # what stands in one row


@dataclass(frozen=True)
class PackedCollator:
    """Makes a batch of packed rows.

    Args:
        seq_len: T, the length of each row; what its pieces leave free is padded.
        pad_token_id: what is padded with; never trained on.
        document_mask: True: each piece is a document of its own to the model. False: a row is one document.
        is_causal: a document's first token has no loss, since nothing precedes it.
    """

    seq_len: int
    pad_token_id: int
    document_mask: bool = True
    is_causal: bool = True

    def __call__(self, rows: Sequence[Row]) -> PackedBatch:
        """Without the document mask labels count across the pieces of a row, and positions too."""
        layout = Layout(len(rows), self.seq_len, self.pad_token_id)
        labels = np.full_like(layout.input_ids, IGNORE)
        for row, pieces in enumerate(rows):
            for piece in pieces:
                begins = self.document_mask or not layout.lengths[row]
                place = layout.put(row, piece.ids, 0 if begins else layout.lengths[row])
                labels[row, place] = piece.labels
                if begins and self.is_causal:
                    labels[row, place.start] = IGNORE
        layout.pad()
        return {
            "input_ids": torch.from_numpy(layout.input_ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(layout.position_ids),
        }


class NumberedCollator:
    """A batch of rows with their numbers, as `row_numbers` (B,) int64."""

    def __init__(self, collate: Callable[[Sequence[Row]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> Any:
        """See `collate`."""
        numbers, plain = zip(*rows, strict=True)
        return self.collate(plain) | {"row_numbers": torch.tensor(numbers)}


class SourceCollator:
    """A batch of numbered rows of one source, with its number, as `source_number`; of blank rows alone, -1."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], num_rows: Sequence[int]) -> None:
        self.collate = collate
        self.ends = list(accumulate(num_rows))

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> Any:
        """See `collate`, which gets the rows with their numbers where it makes something of them."""
        last = max(number for number, _ in rows)
        given = rows if isinstance(self.collate, NumberedCollator) else [row for _, row in rows]
        return self.collate(given) | {"source_number": bisect_right(self.ends, last) if last >= 0 else -1}


@dataclass(frozen=True)
class PromptCollator:
    """Makes a batch of prompts, padded on the left so that generation goes on where each one ends."""

    pad_token_id: int

    def __call__(self, prompts: Sequence[np.ndarray]) -> ContinuationBatch:
        """B prompts, at least one."""
        width = max(len(prompt) for prompt in prompts)
        prompt_ids = np.full((len(prompts), width), self.pad_token_id, np.int64)
        attention_mask = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            prompt_ids[row, width - len(prompt) :] = prompt
            attention_mask[row, width - len(prompt) :] = 1
        return {"prompt_ids": torch.from_numpy(prompt_ids), "attention_mask": torch.from_numpy(attention_mask)}
