"""From a network to its loss, by way of the hidden states: the full logits are never asked for."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.models.adapters.adalora import orthogonality
from llm_lightning.models.adapters.virtual_tokens import prompt_config, prompted_states
from llm_lightning.models.attention import ATTENTION, PACKED, Documents, attention_of, with_attention
from llm_lightning.models.balance import Routing
from llm_lightning.models.loading.sharding import RUN, is_zero3, run_gathered
from llm_lightning.models.running.apart import run_apart
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.objectives.language import (
    IGNORE_INDEX,
    HeadScaling,
    TokenLoss,
    head_cross_entropy,
    hidden_token_targets,
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


SOFTCAPS = ("final_logit_softcapping", "final_logit_softcap", "logits_soft_cap", "output_logit_soft_cap")


def head_scaling(model: PreTrainedModel) -> HeadScaling:
    """What this architecture does to its logits, by the usual names in its config; whether it is true, `examine` tries.

    Networks that give their logits themselves have done it already.
    """
    if behaviour_of(model).own_logits:
        return HeadScaling()
    config = model.config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return HeadScaling(scale, next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None))


def output_head(network: Any) -> Callable[[Tensor], Tensor]:
    """From what `hidden_states` returns to logits."""
    return nn.Identity() if behaviour_of(network).own_logits else network.get_output_embeddings()


def prepare_batch(batch: Mapping[str, Any], *, two_way: bool = False) -> dict[str, Any]:
    """Add what the network needs to know of a batch, while it is on the CPU, so that no step waits for the device.

    Args:
        batch: as the DataModules yield it, `position_ids` (B, T) optional.
        two_way: labels are told where they stand, and not by the token before.

    Returns:
        The batch with `documents` (packed rows only), `target_positions` (N,) into the flattened (B * T) states, and
        `targets` (N,), the tokens to predict there; of packed rows also `real`, see `is_text`.
    """
    prepared = dict(batch)
    targets_of = hidden_token_targets if two_way else next_token_targets
    prepared["target_positions"], prepared["targets"] = targets_of(batch["labels"])
    if "position_ids" in batch and "attention_mask" not in batch:
        prepared["documents"] = Documents.of(batch["position_ids"])
        prepared["real"] = is_text(batch["input_ids"], batch["labels"])
    return prepared


def pinned(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch in memory that a GPU copies from by itself, while the host goes on; what is there already stays.

    A loader pins what it made, and not what a batch was prepared with.
    """

    def pin(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.device.type != "cpu" or value.is_pinned() else value.pin_memory()
        return value.pin_memory() if isinstance(value, Documents) else value

    return {name: pin(value) for name, value in batch.items()}


def is_text(input_ids: Tensor, labels: Tensor) -> Tensor:
    """(B, T) bool: what is not the padding at a row's end, which is one token over and over that is never trained.

    A mixture does not balance its load over padding.
    """
    padding = (input_ids == input_ids[:, -1:]) & (labels == IGNORE_INDEX)
    return ~padding.flip(1).cummin(1).values.flip(1)


def hidden_states(model: nn.Module, batch: Mapping[str, Any], routing: Routing | None = None) -> Tensor:
    """Last hidden states (B, T, H) of a prepared batch; of a network with `own_logits`, its logits (B, T, V).

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
        batch: `input_ids` (B, T), and where they are there `position_ids`, `attention_mask` and `documents`.
        routing: takes note of where a mixture's tokens went.
    """
    network = base_model(model)
    if prompt_config(model) is not None:
        return prompted_states(model, network, batch)
    behaviour, config = behaviour_of(network), network.config.get_text_config(decoder=True)
    kind: Any = type(network)
    names = ["position_ids", "attention_mask"]
    if attention_of(network) == ATTENTION:
        names.append("documents")

    def run(rows: Mapping[str, Any]) -> Tensor:
        inputs = {name: rows[name] for name in ("input_ids", *names) if name in rows}
        if behaviour.two_way and not behaviour.own_logits:
            return before_head(network, inputs)
        forward = network.forward if behaviour.own_logits else network.get_decoder()
        options = {"use_cache": False} if _accepts_use_cache(kind) else {}
        if routing is not None:
            options["output_router_logits"] = True
        is_packed = "documents" in inputs and "attention_mask" not in inputs
        with with_attention(config, PACKED) if is_packed else nullcontext():
            output = forward(**inputs, **options)
        if routing is not None:
            routing.note(output.router_logits, rows.get("real", rows.get("attention_mask")))
        return output.logits if behaviour.own_logits else output.last_hidden_state

    documents = batch.get("documents")
    shares = isinstance(documents, Documents) and documents.source is not None and "documents" not in names
    if documents is None or (behaviour.packs and not shares):
        return run(batch)
    return run_apart(run, batch, at_once=hasattr(network, RUN) or is_zero3(next(network.parameters())))


def before_head(network: Any, inputs: Mapping[str, Any]) -> Tensor:
    """What a network's output layer reads (B, T, H), behind all that it does to its states before: an encoder's head is
    more than that layer. The layer itself runs on nothing.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0][:, :0],)

    handle = network.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        network.forward(**inputs)
    finally:
        handle.remove()
    (states,) = seen
    return states


@cache
def _accepts_use_cache(kind: Any) -> bool:
    return "use_cache" in inspect.signature(kind.forward).parameters


@with_head
def language_loss(
    model: nn.Module, batch: Mapping[str, Any], z_loss: float = 0.0, label_smoothing: float = 0.0
) -> TokenLoss:
    """Summed next-token loss of a prepared batch.

    Args:
        model: as in `hidden_states`.
        batch: from `prepare_batch`.
        z_loss, label_smoothing: see `linear_cross_entropy`.

    Returns:
        Its `loss` has an adapter's own penalty in it, and a mixture's `balance`.
    """
    network = base_model(model)
    targets = batch["targets"]
    routing = Routing.of(network)
    states = hidden_states(model, batch, routing).flatten(0, 1).index_select(0, batch["target_positions"])
    penalty = orthogonality(model) * len(targets)
    head, scaling = output_head(network), head_scaling(network)
    penalties = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    if type(head) is nn.Linear and head.bias is None and not is_zero3(head.weight):
        sums = linear_cross_entropy(states, head.weight, targets, **penalties, scaling=scaling)
    else:
        vocab_size = network.config.get_text_config(decoder=True).vocab_size
        sums = head_cross_entropy(states, lambda x: scaling(head(x)), targets, vocab_size, **penalties)
    if routing is None:
        return sums._replace(loss=sums.loss + penalty)
    balance = routing.loss() * len(targets)
    return sums._replace(loss=sums.loss + penalty + balance, balance=balance.detach())
