"""From a network to how likely answers are to it, in packed rows in which two answers share their prompt."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_lightning.models.balance import Routing
from llm_lightning.models.heads import base_model, head_scaling, hidden_states, output_head, with_head
from llm_lightning.objectives.language import head_logprobs


class AnswerLogprobs(NamedTuple):
    """Of K answers, with gradient.

    Args:
        logprobs: (K,) float32, summed over each answer's tokens; 0 where it has none.
        balance: () what balances a mixture's load, a mean; None where nothing does.
    """

    logprobs: Tensor
    balance: Tensor | None


@with_head
def answer_logprobs(model: nn.Module, batch: Mapping[str, Any]) -> AnswerLogprobs:
    """Log-probabilities of the answers in a batch; only their tokens go through the head, and in chunks.

    Args:
        model: as in `hidden_states`.
        batch: an `AnswerBatch` that went through `prepare_texts`.
    """
    network: Any = base_model(model)
    routing = Routing.of(network)
    states = hidden_states(model, batch, routing).flatten(0, 1).index_select(0, batch["target_positions"])
    head, scaling = output_head(network), head_scaling(network)
    vocab_size = network.config.get_text_config(decoder=True).vocab_size
    tokens = head_logprobs(states, lambda h: scaling(head(h)), batch["targets"], vocab_size, with_entropies=False)
    lengths = batch["num_targets"]
    if len(batch["targets"]):
        logprobs = torch.segment_reduce(tokens.logprobs, "sum", lengths=lengths)
    else:  # the gradient of nothing is zero, not absent: ranks wait for each other's
        logprobs = tokens.logprobs.sum() + torch.zeros_like(lengths, dtype=torch.float32)
    return AnswerLogprobs(logprobs, None if routing is None else routing.loss())
