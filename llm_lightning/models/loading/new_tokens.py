"""Tokens that a trained network does not know: they get rows of embeddings and head, which begin at all others' mean.

At the mean a new token changes no other token's probability by much, and begins as probable as they are together
(Hewitt, 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llm_lightning.errors import UserError

NEW_IDS = "new_token_ids"
"""What a network is given where it got new rows: which they are."""


def new_ids(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, path: str) -> list[int]:
    """Ids of those tokens that a network's own tokenizer does not have.

    Args:
        tokens: `model.backbone.new_tokens`.
        tokenizer: that has them.
        path: the network's; a folder that was saved with the tokens knows them already.

    Raises:
        UserError: the tokenizer does not have them, or the network is sharded as it is loaded.
    """
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in known]:
        raise UserError(
            f"model.backbone.new_tokens: the tokenizer of the data has no {missing[0]!r}. It is added where the "
            "tokenizer is named (--tokenizer, or model.backbone.path with one in it)."
        )
    if is_deepspeed_zero3_enabled():
        raise UserError("model.backbone.new_tokens does not go with ZeRO 3: take --config trainer/deepspeed_zero2.")
    own = own_tokenizer(path)
    before = {} if own is None else own.get_vocab()
    return sorted(known[token] for token in tokens if token not in before)


def own_tokenizer(path: str) -> Any:
    """As `read_tokenizer`; None where there is none."""
    try:
        return read_tokenizer(path)
    except (OSError, ValueError):
        return None


def read_tokenizer(path: str) -> Any:
    """The tokenizer in a model's folder, hub repository or .gguf file.

    Raises:
        OSError, ValueError: transformers', where there is none, or none that can be read.
    """
    place, options = Path(path).expanduser(), {}
    if place.suffix == ".gguf":
        place, options = place.parent, {"gguf_file": place.name}
    return AutoTokenizer.from_pretrained(str(place) if place.exists() else path, trust_remote_code=False, **options)


@torch.no_grad()
def add_rows(network: Any, num_tokens: int, ids: Sequence[int] = ()) -> list[int]:
    """Room for `num_tokens` tokens in embeddings and head; the rows of `ids`, and all that were not there, begin at the
    mean of those before. Returns the ids of all these rows.
    """
    former = network.get_input_embeddings().weight.shape[0]
    num_tokens = max(num_tokens, former, *(number + 1 for number in ids))
    if num_tokens > former:
        network.resize_token_embeddings(num_tokens, mean_resizing=False)
    fresh = sorted({*ids, *range(former, num_tokens)})
    if not fresh:
        return []
    for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
        for parameter in () if layer is None else layer.parameters(recurse=False):
            # In float64: the mean is the same to the last bit on any number of threads, and resumed runs compare it.
            parameter[fresh] = parameter[: fresh[0]].mean(0, dtype=torch.float64).to(parameter.dtype)
    return fresh


def check_adapter(config: PeftConfig) -> None:
    """Raise `UserError` for methods that would leave the new rows as they began."""
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"model.backbone.new_tokens: model.peft={type(config).__name__} cannot train their rows; LoRA can "
            "(--config peft/lora), or leave model.peft out."
        )


def with_rows(config: PeftConfig, network: Any) -> PeftConfig:
    """An adapter's config that also trains the rows of the network's new tokens, in place; peft saves them with it."""
    ids = getattr(network, NEW_IDS, [])
    if not ids or not isinstance(config, LoraConfig):
        return config
    layers = [network.get_input_embeddings()]
    head = network.get_output_embeddings()
    if head is not None and head.weight is not layers[0].weight:  # peft takes care of a shared weight
        layers.append(head)
    names = [name.rsplit(".", 1)[-1] for name, module in network.named_modules() if module in layers]
    given = config.trainable_token_indices or {}
    given = given if isinstance(given, dict) else {"embed_tokens": given}
    for name in names:
        if name not in (config.modules_to_save or ()):  # trained whole
            given[name] = sorted({*given.get(name, ()), *ids})
    config.trainable_token_indices = given
    return config
