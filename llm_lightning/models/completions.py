"""What a network makes of completions that are already written: the probability of each token, and its value.

Prompts with their completions are packed into one row without padding, every pair a document of its own, and only the
completions' tokens go through the head: the same way at every use, so that two passes of the same weights agree.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_lightning.models.attention import Documents
from llm_lightning.models.heads import base_model, head_scaling, hidden_states, output_head, with_head
from llm_lightning.objectives.chunks import ROUNDING
from llm_lightning.objectives.language import TokenLogprobs, head_logprobs


class PackedCompletions(NamedTuple):
    """Prompts and their completions in one row.

    Args:
        batch: `input_ids` (1, N), `position_ids` (1, N), `documents`.
        positions: (M,) where the M tokens of the completions are predicted: one before each.
        targets: (M,) the completions' tokens, one completion after the other.
    """

    batch: dict[str, Any]
    positions: Tensor
    targets: Tensor


def pack_completions(
    prompts: Sequence[Tensor], completions: Sequence[Tensor], device: torch.device
) -> PackedCompletions:
    """One row of all pairs, padded to a round length by a document that nothing is read from.

    Args:
        prompts, completions: token ids, (n,) int64 on the CPU; no prompt is empty.
        device: of the result.
    """
    pairs = [torch.cat(pair) for pair in zip(prompts, completions, strict=True)]
    count = sum(map(len, pairs))
    pairs.append(torch.zeros(-count % ROUNDING, dtype=torch.int64))
    position_ids = torch.cat([torch.arange(len(pair)) for pair in pairs])[None]
    end, places = 0, []
    for prompt, completion in zip(prompts, completions, strict=True):
        first, end = end + len(prompt), end + len(prompt) + len(completion)
        places.append(torch.arange(first - 1, end - 1))
    batch = {
        "input_ids": torch.cat(pairs)[None].to(device),
        "position_ids": position_ids.to(device),
        "documents": Documents.of(position_ids).to(device),
    }
    return PackedCompletions(batch, torch.cat(places).to(device), torch.cat(list(completions)).to(device))


def completion_states(model: nn.Module, packed: PackedCompletions) -> Tensor:
    """(M, H) last hidden states that predict the completions' tokens."""
    return hidden_states(model, packed.batch)[0].index_select(0, packed.positions)


@with_head
def states_and_logprobs(
    model: nn.Module, packed: PackedCompletions, temperature: float, *, with_entropies: bool = True
) -> tuple[Tensor, TokenLogprobs]:
    """`completion_states`, and the completions' logprobs (M,) and entropies (M,) at a temperature.

    Args:
        model: as in `hidden_states`.
        packed: the completions.
        temperature: the one that they were drawn at.
        with_entropies: see `head_logprobs`.
    """
    states = completion_states(model, packed)
    network = base_model(model)
    head, scaling = output_head(network), head_scaling(network)
    vocab_size = network.config.get_text_config(decoder=True).vocab_size
    return states, head_logprobs(
        states, lambda h: scaling(head(h)) / temperature, packed.targets, vocab_size, with_entropies=with_entropies
    )


def bounded_groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Consecutive indices whose lengths add up to at most `most`, but for single longer ones."""
    group: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if group and total + length > most:
            yield group
            group, total = [], 0
        group.append(index)
        total += length
    if group:
        yield group


class Critic(nn.Module):
    """Expects the return of a completion at each of its tokens.

    The head's weights start at zero, so that the first advantages are not those of a random critic, and its bias at the
    mean of the first scores (`expect`): else the weights have to lift all values, each token's by another amount.

    Args:
        hidden_size: H.
        network: one of its own, whose language head is not used; None: the head reads the policy's states.
    """

    def __init__(self, hidden_size: int, network: Any = None) -> None:
        super().__init__()
        self.network = None if network is None else network.get_decoder()
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def expect(self, score: float) -> None:
        """Begin with this value for every token."""
        nn.init.constant_(self.head.bias, score)

    def forward(self, packed: PackedCompletions, policy_states: Tensor) -> Tensor:
        """(M,) float32 values.

        Args:
            packed: the completions.
            policy_states: (M, H) of the policy, not looked at by a network of its own.
        """
        states = policy_states
        if self.network is not None:
            states = completion_states(self.network, packed)
        return (states.float() @ self.head.weight.float().t() + self.head.bias.float()).squeeze(1)
