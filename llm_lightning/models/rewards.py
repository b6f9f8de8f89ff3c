"""From a network to the rewards of the texts in a batch, packed or padded: one number at each text's last token.

Where a text ends is told by the DataModule or by the attention mask, never looked for: a padding token may well be one
that texts end with.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm_lightning.models.attention import Documents
from llm_lightning.models.heads import base_model, hidden_states, with_head

ENDS = ("chosen_ends", "rejected_ends", "ends")


def prepare_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the network needs to know of a batch, while it is on the CPU, so that no step waits for the device.

    Args:
        batch: `input_ids` (B, T), and either `position_ids` (B, T) and `spans` (M, 5) of packed rows (see
            `Documents`), with where the texts end in the flattened rows (`ENDS`), or an `attention_mask` (B, T),
            padded on either side, for one text a row.

    Returns:
        The batch with `documents` instead of the spans, or with `position_ids` and `ends`.
    """
    prepared = dict(batch)
    if "spans" in batch:
        prepared["documents"] = Documents.of_spans(prepared.pop("spans"), batch["input_ids"].shape[1])
        return prepared
    mask = batch["attention_mask"]
    B, T = mask.shape
    prepared["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    last = (mask * torch.arange(1, T + 1, device=mask.device)).argmax(1)
    prepared["ends"] = torch.arange(B, device=mask.device) * T + last
    return prepared


@with_head
def rewards(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rewards (N,) float32 of a prepared batch, for each name of `ENDS` in it.

    Args:
        model: a `PreTrainedModel` with a head of one label, or a `PeftModel` around one.
        batch: from `prepare_texts`.
    """
    network: Any = base_model(model)
    states = hidden_states(model, batch).flatten(0, 1)
    names = [name for name in ENDS if name in batch]
    chosen = states.index_select(0, torch.cat([batch[name] for name in names]))
    # In half precision close rewards would be equal.
    with torch.autocast(chosen.device.type, enabled=False):
        values = network.score(chosen.to(_dtype(network.score))).float().squeeze(-1)
    return dict(zip(names, values.split([len(batch[name]) for name in names]), strict=True))


def _dtype(head: nn.Module) -> torch.dtype:
    return next(head.parameters()).dtype
