"""Encoder-decoders over packed rows: who sees whom, and their loss."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from llm_lightning.errors import UserError
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.heads import base_model, before_head, with_head
from llm_lightning.models.running.behaviour import Behaviour
from llm_lightning.objectives.language import IGNORE_INDEX, TokenLoss, linear_cross_entropy

FAMILY = ("t5", "mt5", "umt5")
"""Architectures that know distances and no positions, so that a document may stand anywhere in a row."""


def encoder_decoder_behaviour(config: PreTrainedConfig, attention: str) -> Behaviour:
    """How such a network is run.

    Args:
        config: of the network.
        attention: as in `Backbone`; by default torch's own, which takes a mask for each row.

    Raises:
        UserError: it is no encoder-decoder, or counts positions through a row.
    """
    kind = config.model_type
    if not config.is_encoder_decoder:
        raise UserError(
            f"model.backbone: {kind} networks are no encoder-decoders, which span corruption trains; take a T5, mT5 or "
            "UMT5, or give data.fim to CausalPretraining and data.masking to MaskedPretraining."
        )
    if kind not in FAMILY:
        raise UserError(
            f"model.backbone: {kind} networks are not known to tell packed documents apart; take a T5, mT5 or UMT5."
        )
    chosen = "sdpa" if attention == ATTENTION else attention
    if chosen not in ("sdpa", "eager"):
        raise UserError(f"model.backbone.attention={attention}: encoder-decoders have sdpa, the default, and eager.")
    return Behaviour(chosen, two_way=True)


def prepare_spans(batch: Mapping[str, Any], start: int) -> dict[str, Any]:
    """Add what the decoder reads, and where its targets are.

    Args:
        batch: a `SpanTextBatch`.
        start: the token that a decoder begins with.

    Returns:
        The batch with `decoder_input_ids` (B, T), each document anew from `start`; `target_positions` (N,) in the
        flattened (B * T) states, and `targets` (N,).
    """
    labels, documents = batch["labels"], batch["label_documents"]
    before = labels.roll(1, 1)
    begins = torch.ones_like(labels, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    positions = (labels.flatten() != IGNORE_INDEX).nonzero().flatten()
    return dict(batch) | {
        "decoder_input_ids": before.masked_fill(begins | (before == IGNORE_INDEX), start),
        "target_positions": positions,
        "targets": labels.flatten()[positions],
    }


def visible(queries: Tensor, keys: Tensor, dtype: torch.dtype, *, causal: bool = False) -> Tensor:
    """(B, 1, Q, K) what is added to scores, so that documents see themselves alone.

    Padding sees padding, which is no document of its row; where a row has none, all tokens alike: nobody reads that.

    Args:
        queries, keys: (B, Q) and (B, K) int64, documents of tokens.
        dtype: of the scores.
        causal: hide what comes after a token, too.
    """
    same = queries[:, None, :, None] == keys[:, None, None, :]
    if causal:
        same = same.tril()
    return torch.zeros_like(same, dtype=dtype).masked_fill(~same, torch.finfo(dtype).min)


@with_head
def spans_loss(
    model: nn.Module, batch: Mapping[str, Any], z_loss: float = 0.0, label_smoothing: float = 0.0
) -> TokenLoss:
    """Summed loss of what the decoder writes of a batch from `prepare_spans`; see `linear_cross_entropy`."""
    network: Any = base_model(model)
    dtype = next(network.parameters()).dtype
    read, told = batch["input_documents"], batch["label_documents"]
    encoder = network.get_encoder()
    states = encoder(input_ids=batch["input_ids"], attention_mask=visible(read, read, dtype)).last_hidden_state
    inputs = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "attention_mask": visible(told, read, dtype),  # of the decoder's look at what was read
        "decoder_input_ids": batch["decoder_input_ids"],
        "decoder_attention_mask": visible(told, told, dtype, causal=True),
        "use_cache": False,
    }
    written = before_head(network, inputs).flatten(0, 1).index_select(0, batch["target_positions"])
    weight = network.get_output_embeddings().weight
    return linear_cross_entropy(written, weight, batch["targets"], z_loss=z_loss, label_smoothing=label_smoothing)
