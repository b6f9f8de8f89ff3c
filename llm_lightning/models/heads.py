"""From a network to its loss, by way of the hidden states: the full logits are never asked for."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.models.adalora import orthogonality
from llm_lightning.models.attention import ATTENTION, Documents
from llm_lightning.models.sharding import is_zero3, run_gathered
from llm_lightning.models.virtual_tokens import prompt_config, prompted_states
from llm_lightning.objectives.language import (
    HeadScaling,
    TokenLoss,
    head_cross_entropy,
    linear_cross_entropy,
    next_token_targets,
)

P = ParamSpec("P")
R = TypeVar("R")


def base_model(model: Any) -> PreTrainedModel:
    """The transformers network inside a `peft.PeftModel`, or the network itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def with_head(function: Callable[P, R]) -> Callable[P, R]:
    """For functions of a model, their first argument, that read its head: it is gathered where it is sharded."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        return run_gathered(base_model(args[0]), function, *args, **options)

    return call


def head_scaling(model: PreTrainedModel) -> HeadScaling:
    """What this architecture does to its logits, read from its config."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return HeadScaling(scale, getattr(config, "final_logit_softcapping", None))


def prepare_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the network needs to know of a batch, while it is on the CPU, so that no step waits for the device.

    Args:
        batch: as the DataModules yield it, `position_ids` (B, T) optional.

    Returns:
        The batch with `documents` (packed rows only), `target_positions` (N,) into the flattened (B * T) states, and
        `targets` (N,), the tokens to predict there.
    """
    prepared = dict(batch)
    prepared["target_positions"], prepared["targets"] = next_token_targets(batch["labels"])
    if "position_ids" in batch and "attention_mask" not in batch:
        prepared["documents"] = Documents.of(batch["position_ids"])
    return prepared


def hidden_states(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Last hidden states (B, T, H) of a prepared batch.

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
        batch: `input_ids` (B, T), and where they are there `position_ids`, `attention_mask` and `documents`.
    """
    network = base_model(model)
    if prompt_config(model) is not None:
        return prompted_states(model, network, batch)
    names = ["position_ids", "attention_mask"]
    if network.config._attn_implementation == ATTENTION:
        names.append("documents")
    inputs = {name: batch[name] for name in names if name in batch}
    return network.get_decoder()(input_ids=batch["input_ids"], use_cache=False, **inputs).last_hidden_state


@with_head
def language_loss(model: nn.Module, batch: Mapping[str, Any], z_loss: float = 0.0) -> TokenLoss:
    """Summed next-token loss of a prepared batch.

    Args:
        model: as in `hidden_states`.
        batch: from `prepare_batch`.
        z_loss: see `linear_cross_entropy`.

    Returns:
        Its `loss` has an adapter's own penalty in it.
    """
    network = base_model(model)
    targets = batch["targets"]
    states = hidden_states(model, batch).flatten(0, 1).index_select(0, batch["target_positions"])
    penalty = orthogonality(model) * len(targets)
    head, scaling = network.get_output_embeddings(), head_scaling(network)
    if type(head) is nn.Linear and head.bias is None and not is_zero3(head.weight):
        sums = linear_cross_entropy(states, head.weight, targets, z_loss=z_loss, scaling=scaling)
    else:
        vocab_size = network.config.get_text_config().vocab_size
        sums = head_cross_entropy(states, lambda x: scaling(head(x)), targets, vocab_size, z_loss=z_loss)
    return sums._replace(loss=sums.loss + penalty)
