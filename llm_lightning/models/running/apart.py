"""One document a row, for networks in which documents that share a row see each other.

Batches stay packed, and with them losses, divisors and the order of the data. Only for the forward pass are their
documents taken apart, into rows padded on the right: a causal network carries nothing from there to its tokens, whether
it heeds the attention mask or not. Documents of like length go together, so that little is padded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_lightning.models.attention import Documents


@dataclass(frozen=True)
class Apart:
    """Some documents of a batch as padded rows.

    Args:
        source: (n, L) which tokens of the flattened (B * T) batch stand there; 0 where padded.
        mask: (n, L) bool, true on real tokens.
        kept: (m,) where the documents' own tokens, shared prompts excluded, are in the flattened (n * L) rows.
        places: (m,) where these stand in the flattened batch.
    """

    source: Tensor
    mask: Tensor
    kept: Tensor
    places: Tensor


def take_apart(documents: Documents, num_tokens: int, most_tokens: int) -> Iterator[Apart]:
    """Groups of documents, longest first, of at most so many tokens with their padding, but for a longer one.

    Args:
        documents: of a batch.
        num_tokens: T, of its rows.
        most_tokens: of a group.
    """
    row, start, end, first, last = documents.spans.unbind(1)
    shared = last - first
    lengths = shared + end - start
    order = lengths.argsort(descending=True, stable=True)
    while len(order):
        longest = int(lengths[order[0]])
        group, order = order[: max(1, most_tokens // longest)], order[max(1, most_tokens // longest) :]
        within = torch.arange(longest)
        own = within >= shared[group, None]
        begin = torch.where(own, (start - shared)[group, None], first[group, None])
        mask = within < lengths[group, None]
        source = torch.where(mask, row[group, None] * num_tokens + begin + within, 0)
        kept = (own & mask).flatten().nonzero().squeeze(1)
        yield Apart(source, mask, kept, source.flatten()[kept])


def run_apart(run: Callable[[dict[str, Any]], Tensor], batch: Mapping[str, Any], *, at_once: bool = False) -> Tensor:
    """What a network makes of a packed batch, (B, T, ...), each document in a row of its own.

    Args:
        run: from a batch of padded rows (n, L), `input_ids` and where something is padded `attention_mask`, to
            (n, L, ...).
        batch: `input_ids` (B, T) and `documents`.
        at_once: in one pass, for ranks that wait for each other in every pass.
    """
    input_ids = batch["input_ids"]
    device, (B, T) = input_ids.device, input_ids.shape
    outputs, places = [], []
    for group in take_apart(batch["documents"], T, 2**62 if at_once else B * T):
        source = group.source.to(device, non_blocking=True)
        rows = {"input_ids": input_ids.flatten()[source]}
        if not group.mask.all():
            rows["attention_mask"] = group.mask.to(device, torch.int64, non_blocking=True)
        if "real" in batch:
            rows["real"] = batch["real"].flatten()[source] & group.mask.to(device, non_blocking=True)
        outputs.append(run(rows).flatten(0, 1).index_select(0, group.kept.to(device, non_blocking=True)))
        places.append(group.places)
    back = torch.cat(places).argsort().to(device, non_blocking=True)
    return torch.cat(outputs).index_select(0, back).unflatten(0, (B, T))
