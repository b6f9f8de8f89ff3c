"""Token sequences in one row that share their beginnings, of any depth: few-shot examples, question, options.

A sequence's own tokens stand behind what it takes over from one before it, and only they are queries. So a shared
beginning costs neither the products nor the attention a second time. For networks that are only read: nothing here has
a backward pass of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.models.attention.plain import plain_attention


@dataclass(frozen=True)
class Branch:
    """A sequence's own tokens.

    Args:
        own: where they stand in the row.
        before: (n,) int64 on the row's device, where the tokens before them stand; None where they begin the sequence.
        distances: (own, before + own) int64 on the row's device, from each own token back to each of the sequence,
            negative for those behind it; None with `before`.
    """

    own: slice
    before: Tensor | None = None
    distances: Tensor | None = None

    @classmethod
    def of(cls, own: slice, before: np.ndarray, device: torch.device) -> "Branch":
        """Of own tokens behind those that stand at `before` (n,)."""
        if not len(before):
            return cls(own)
        last = torch.arange(len(before), len(before) + own.stop - own.start, device=device)
        distances = last[:, None] - torch.arange(int(last[-1]) + 1, device=device)
        return cls(own, torch.from_numpy(before).to(device), distances)


@dataclass(frozen=True)
class Branches:
    """The sequences of a row, in the place of `Documents`.

    Args:
        branches: in the row's order and without gaps.
    """

    branches: Sequence[Branch]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """query (1, heads, T, D), key and value (1, KV heads, T, D) to (1, T, heads, D)."""
        parts = []
        for branch in self.branches:
            q, k, v = (x[:, :, branch.own] for x in (query, key, value))
            if branch.before is not None:
                k, v = (torch.cat([x[:, :, branch.before], y], 2) for x, y in ((key, k), (value, v)))
            mask = _mask(branch, q.shape[2], window, q.device)
            if softcap is not None or sinks is not None:
                parts.append(plain_attention(q, k, v, scale, 0.0, mask, softcap, sinks))
            else:
                out = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
                )
                parts.append(out.transpose(1, 2))
        return torch.cat(parts, 1)


def _mask(branch: Branch, num_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """What the own tokens see, bool; None: causal."""
    distances = branch.distances
    if distances is None:
        if window is None or window >= num_tokens:
            return None
        place = torch.arange(num_tokens, device=device)
        distances = place[:, None] - place
    seen = distances >= 0
    return seen if window is None else seen & (distances < window)
