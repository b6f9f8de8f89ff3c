"""Prompt, prefix and P-tuning over packed rows: every document gets the virtual tokens, and none is padded.

peft puts virtual tokens before each row of a padded batch, in `PeftModel.forward`. A packed row holds many documents,
and unpacking it to padded ones would multiply the work by the longest over the mean length. So the batch becomes one
row in which every document stands behind its own virtual tokens: in the embeddings for prompt tuning and P-tuning, in
the keys and values of each layer for prefix tuning. Positions and results are those of peft, document by document.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_lightning.models.attention import ATTENTION, Documents, attention_of

IN_EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING")
IN_ATTENTION = ("PREFIX_TUNING",)


def prompt_config(model: Any) -> Any:
    """The peft config of a network with virtual tokens, None for any other network."""
    config = getattr(model, "active_peft_config", None)
    return config if config is not None and config.is_prompt_learning else None


@dataclass(frozen=True)
class Insertion:
    """A batch of B x T tokens in N documents, as one row with P virtual tokens before each document.

    Args:
        documents: those of the new row.
        source: (N * P + B * T,) where each place of the new row comes from: below P a virtual token, else P + token.
        kept: (B * T,) where the batch's own tokens stand in the new row.
    """

    documents: Documents
    source: Tensor
    kept: Tensor

    @classmethod
    def before(cls, documents: Documents, num_virtual: int, device: torch.device) -> "Insertion":
        """Worked out on the CPU, where the documents' spans are."""
        lengths = documents.spans[:, 2] - documents.spans[:, 1] + num_virtual
        ends = lengths.cumsum(0)
        document = torch.arange(len(lengths)).repeat_interleave(lengths)
        place = torch.arange(len(document))
        within = place - (ends - lengths)[document]
        source = torch.where(within < num_virtual, within, place - num_virtual * document)
        kept = (within >= num_virtual).nonzero().squeeze(1)
        return cls(
            Documents.of(within[None]).to(device),
            source.to(device, non_blocking=True),
            kept.to(device, non_blocking=True),
        )

    def insert(self, virtual: Tensor, tokens: Tensor) -> Tensor:
        """(P, ...) and (B * T, ...) to the new row (1, N * P + B * T, ...)."""
        return torch.cat([virtual, tokens]).index_select(0, self.source)[None]

    def take_back(self, row: Tensor, num_rows: int) -> Tensor:
        """The new row (1, N * P + B * T, ...) to the batch's own tokens (B, T, ...)."""
        return row[0].index_select(0, self.kept).unflatten(0, (num_rows, -1))


@dataclass(frozen=True)
class Prefix:
    """Keys and values that every document sees before its own.

    Args:
        layers: keys and values of each layer, (KV heads, P, D).
        insertion: where they go.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    insertion: Insertion

    def attend(
        self, attention: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        """As `document_attention`, which is `attention`: (B, heads, T, D) each, to (B, T, heads, D)."""
        keys, values = self.layers[module.layer_idx]  # type: ignore[index]
        B, heads, _, D = query.shape
        # Causal attention counts queries and keys from the same start, so the prefix asks too, and is not listened to.
        pairs = (query.new_zeros(heads, keys.shape[1], D), query), (keys, key), (values, value)
        inserted = (
            self.insertion.insert(virtual.to(own.dtype).transpose(0, 1), own.transpose(1, 2).flatten(0, 1))
            for virtual, own in pairs
        )
        rows = [row.transpose(1, 2) for row in inserted]
        out, _ = attention(module, *rows, None, documents=self.insertion.documents, **options)
        return self.insertion.take_back(out, B), None


def prompted_states(model: Any, network: Any, batch: Mapping[str, Any]) -> Tensor:
    """Last hidden states (B, T, H) of the batch's own tokens, each document behind the virtual tokens.

    Args:
        model: a `PeftModel` of a prompt-learning method.
        network: the transformers network inside it.
        batch: as `prepare_batch` leaves it; rows without `documents` are one document each, padded on the right.
    """
    config = prompt_config(model)
    input_ids = batch["input_ids"]
    B, T = input_ids.shape
    device = input_ids.device
    positions = batch.get("position_ids")
    if positions is None:
        positions = torch.arange(T, device=device).expand(B, T)
    documents = batch.get("documents")
    if documents is None:
        documents = Documents.of(torch.arange(T).expand(B, T))
    num_virtual = config.num_virtual_tokens
    insertion = Insertion.before(documents, num_virtual, device)
    prompt = model.get_prompt(batch_size=1)
    decoder = network.get_decoder()
    if config.peft_type in IN_ATTENTION:
        layers = tuple((layer.keys[0], layer.values[0]) for layer in prompt.layers)
        return decoder(
            input_ids=input_ids,
            position_ids=positions + num_virtual,
            use_cache=False,
            documents=documents.to(device),
            prefix=Prefix(layers, insertion),
        ).last_hidden_state
    own = attention_of(network) == ATTENTION
    embeddings = network.get_input_embeddings()(input_ids).flatten(0, 1)
    row = decoder(
        inputs_embeds=insertion.insert(prompt[0].to(embeddings.dtype), embeddings),
        position_ids=insertion.insert(torch.arange(num_virtual, device=device), positions.flatten() + num_virtual),
        use_cache=False,
        **({"documents": insertion.documents} if own else {}),
    ).last_hidden_state
    return insertion.take_back(row, B)
