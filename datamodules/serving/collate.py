"""From packed rows to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

IGNORE = -100  # torch's own `ignore_index`: no loss is computed there


class Piece(NamedTuple):
    """A document, or a part of one.

    Args:
        ids: (n,) token ids.
        trained: (n,) bool, which of them are learned; None for all.
        prompt: of a whole conversation, the tokens before its last reply.
    """

    ids: np.ndarray
    trained: np.ndarray | None = None
    prompt: int = 0

    @property
    def labels(self) -> np.ndarray:
        """(n,) the ids that are learned, else -100."""
        return self.ids if self.trained is None else np.where(self.trained, self.ids.astype(np.int64), IGNORE)


Row: TypeAlias = list[Piece]  # what stands in one row


@dataclass(frozen=True)
class PackedCollator:
    """Makes a batch of packed rows.

    Args:
        seq_len: T, the length of each row; what its pieces leave free is padded.
        pad_token_id: what is padded with; never trained on.
        document_mask: True: each piece is a document of its own to the model. False: a row is one document.
    """

    seq_len: int
    pad_token_id: int
    document_mask: bool = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`, `position_ids`, each (B, T) int64.

        Labels are not shifted. They are -100 on padding and on the first token of each document, which nothing
        precedes. Positions begin anew at each document; the padding at a row's end is a document too.
        """
        shape = (len(rows), self.seq_len)
        input_ids = np.full(shape, self.pad_token_id, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        position_ids = np.empty(shape, np.int64)
        count = np.arange(self.seq_len)
        for row, pieces in enumerate(rows):
            end = 0
            for piece in pieces:
                begin, end = end, end + len(piece.ids)
                input_ids[row, begin:end] = piece.ids
                if self.document_mask or not begin:
                    labels[row, begin + 1 : end] = piece.labels[1:]
                    position_ids[row, begin:end] = count[: end - begin]
                else:
                    labels[row, begin:end] = piece.labels
                    position_ids[row, begin:end] = count[begin:end]
            position_ids[row, end:] = count[: self.seq_len - end]
        arrays = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class PromptCollator:
    """Makes a batch of prompts, padded on the left so that generation goes on where each one ends."""

    pad_token_id: int

    def __call__(self, prompts: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """`prompt_ids` and `attention_mask`, each (B, T) int64, T the longest prompt."""
        width = max(len(prompt) for prompt in prompts)
        prompt_ids = np.full((len(prompts), width), self.pad_token_id, np.int64)
        attention_mask = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            prompt_ids[row, width - len(prompt) :] = prompt
            attention_mask[row, width - len(prompt) :] = 1
        return {"prompt_ids": torch.from_numpy(prompt_ids), "attention_mask": torch.from_numpy(attention_mask)}
