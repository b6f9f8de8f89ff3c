"""Completions that are being written where keys and values cannot be kept in slots: whole texts, read for every token.

For networks that carry a state, whose attention does not go through transformers' interface, or that have virtual
tokens before every text. Every token costs a forward pass over all texts so far, so that a long completion costs in
proportion to its length squared.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_lightning.models.attention import Documents
from llm_lightning.models.heads import hidden_states
from llm_lightning.rollouts.new_tokens import NewTokens


class Texts:
    """The same to the sampler as `Slots`, without any memory but the tokens.

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.texts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.texts)

    def admit(
        self, prompts: Sequence[Tensor], num_samples: int, most_tokens: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """As `Slots.admit`, by texts that begin with the prompts."""
        part, length = list[int](), 0
        for number, prompt in enumerate(prompts):
            if part and length + len(prompt) > most_tokens:
                yield part, self._begin([prompts[each] for each in part], num_samples)
                part, length = [], 0
            part, length = [*part, number], length + len(prompt)
        yield part, self._begin([prompts[each] for each in part], num_samples)

    def append(self, tokens: Tensor) -> Tensor:
        """(S, H) last states once each text has one more token, (S,)."""
        self.texts = [torch.cat([text, token[None]]) for text, token in zip(self.texts, tokens.cpu(), strict=True)]
        return self._read(self.texts)

    def extend(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """(N, H) states of new tokens (N,), of which the texts get so many each, (S,), one text's after the other's."""
        parts = tokens.cpu().split(counts.tolist())
        self.texts = [torch.cat([text, part]) for text, part in zip(self.texts, parts, strict=True)]
        return self._read(self.texts, counts)

    def take_back(self, counts: Tensor) -> None:
        """Let each text forget so many of its newest tokens, (S,)."""
        self.texts = [text[: len(text) - n] for text, n in zip(self.texts, counts.tolist(), strict=True)]

    def cost(self, num_tokens: np.ndarray) -> np.ndarray:
        """As `Slots.cost`: all texts are read, whatever is new."""
        return sum(map(len, self.texts)) + num_tokens

    def keep(self, index: Tensor) -> None:
        """Give up all texts but those of `index` (int64)."""
        self.texts = [self.texts[number] for number in index.tolist()]

    def _begin(self, prompts: Sequence[Tensor], num_samples: int) -> Tensor:
        self.texts += [prompt.cpu() for prompt in prompts for _ in range(num_samples)]
        return self._read(prompts)

    def _read(self, texts: Sequence[Tensor], counts: Tensor | None = None) -> Tensor:
        """The states of each text's last token, or of so many last ones."""
        device = self.model.device
        position_ids = torch.cat([torch.arange(len(text)) for text in texts])[None]
        batch = {
            "input_ids": torch.cat([text.cpu() for text in texts])[None].to(device),
            "position_ids": position_ids.to(device),
            "documents": Documents.of(position_ids).to(device),
        }
        ends = torch.tensor([len(text) for text in texts]).cumsum(0)
        if counts is None:
            counts = torch.ones_like(ends)
        new = NewTokens.ragged(ends - counts.cpu(), counts.cpu())
        return hidden_states(self.model, batch)[0].index_select(0, new.places.to(device))
