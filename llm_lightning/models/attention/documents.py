"""Where the documents of a packed batch lie."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed batch lie.

    A document may begin with a prompt that stands only once in its row, in front of another document: two responses to
    one question then share the question, and each sees it as its own beginning.

    Args:
        spans: (N, 5) int64 on the CPU: row, start, end of each document, and start and end of the prompt that it
            shares with an earlier document of its row, where it has one (else both are 0).
        cu_seqlens: (N + 1,) int32 on the batch's device: ends of the documents, shared prompts included, one after the
            other.
        longest: tokens of the longest document, its shared prompt included.
        source: (K,) int64 on the batch's device, which tokens of the flattened (B * T) batch these K are; None where
            they are the batch itself, since no prompt is shared.
        kept: (B * T,) int64 on the batch's device, where the batch's tokens are among those of `source`.
    """

    spans: Tensor
    cu_seqlens: Tensor
    longest: int
    source: Tensor | None = None
    kept: Tensor | None = None

    @classmethod
    def of(cls, position_ids: Tensor) -> "Documents":
        """From (B, T) positions that start at 0 with each document (the first of a row need not)."""
        num_rows, num_tokens = position_ids.shape
        is_start = position_ids == 0
        is_start[:, 0] = True
        row, start = is_start.nonzero(as_tuple=True)
        flat = row * num_tokens + start
        lengths = torch.cat([flat, flat.new_tensor([num_rows * num_tokens])]).diff()
        none = torch.zeros_like(row)
        return cls.of_spans(torch.stack([row, start, start + lengths, none, none], 1), num_tokens)

    @classmethod
    def of_spans(cls, spans: Tensor, num_tokens: int) -> "Documents":
        """From the spans of a batch, in order and without gaps, whose rows have `num_tokens` tokens."""
        # Their number differs from batch to batch: a compiled graph must not be made for each.
        torch._dynamo.maybe_mark_dynamic(spans, 0)
        row, start, end, prompt_start, prompt_end = spans.unbind(1)
        shared, own = prompt_end - prompt_start, end - start
        lengths = shared + own
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        documents = cls(spans, cu_seqlens.int(), int(lengths.max()))
        if not shared.any():
            return documents
        document = torch.arange(len(spans)).repeat_interleave(lengths)
        within = torch.arange(len(document)) - cu_seqlens[document]
        is_own = within >= shared[document]
        first = torch.where(is_own, (start - shared)[document], prompt_start[document])
        source = row[document] * num_tokens + first + within
        return replace(documents, source=source, kept=is_own.nonzero().squeeze(1))

    def to(self, device: torch.device) -> "Documents":
        """On the batch's device, without waiting for it; the spans stay on the CPU."""
        return self._with(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Documents":
        """In memory that a GPU copies from by itself."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Documents":
        names = ("cu_seqlens", "source", "kept")
        changed: Any = {name: None if (x := getattr(self, name)) is None else change(x) for name in names}
        return replace(self, **changed)


class Span(NamedTuple):
    """Where a document lies in (B, heads, T, ...), with the prompt that it shares."""

    rows: slice
    own: slice
    prompt: slice

    @property
    def shared(self) -> int:
        """Tokens of the prompt."""
        return self.prompt.stop - self.prompt.start

    @property
    def length(self) -> int:
        """Tokens of the whole document, the prompt included."""
        return self.own.stop - self.own.start + self.shared

    def of(self, x: Tensor) -> Tensor:
        """The whole document, shared prompt first."""
        own = x[self.rows, :, self.own]
        return torch.cat([x[self.rows, :, self.prompt], own], 2) if self.shared else own

    def write(self, x: Tensor, document: Tensor) -> None:
        """Put the document's own tokens into their place."""
        x[self.rows, :, self.own] = document[:, :, self.shared :]


def merge_rows(spans: Tensor, num_rows: int, num_tokens: int) -> list[Span]:
    """The documents; rows that are one document each go in one call."""
    if len(spans) == num_rows:
        return [Span(slice(None), slice(0, num_tokens), slice(0, 0))]
    return [
        Span(slice(row, row + 1), slice(start, end), slice(first, last))
        for row, start, end, first, last in spans.tolist()
    ]
