"""A network that learns from the text it has read, and forgets it after each document.

Dynamic evaluation (arXiv:1904.08378) and test-time training (arXiv:2411.07279).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from llm_lightning.errors import UserError
from llm_lightning.models.completions import pack_completions, states_and_logprobs
from llm_lightning.models.running.evaluating import evaluating

MAX_GRADIENT_NORM = 1.0
SEED = 0  # of a LoRA's first numbers: what is read depends on the text and the settings alone


@dataclass(frozen=True)
class Adaptation:
    """How a network learns from a text while it reads it.

    Args:
        lr: of Adam, without decay. For all weights take 1e-5.
        steps: on each chunk, once it has been read.
        chunk: tokens that are read, and then learned from, together. Smaller ones adapt sooner and cost more: what
            stands before a chunk is read again with it.
        rank: of the LoRA that learns, on all linear layers. None: all weights do, of which a copy is kept.
    """

    lr: float = 1e-3
    steps: int = 1
    chunk: int = 256
    rank: int | None = 8

    def check(self, name: str) -> None:
        """Raise `UserError` for values that cannot work; `name` is the setting that holds these."""
        for field, valid, words in (
            ("lr", self.lr > 0, "above 0"),
            ("steps", self.steps >= 1, "at least 1"),
            ("chunk", self.chunk >= 1, "at least 1"),
            ("rank", self.rank is None or self.rank >= 1, "at least 1, or null for all weights"),
        ):
            if not valid:
                raise UserError(f"{name}.{field}={getattr(self, field)} must be {words}.")


class AdaptingNetwork:
    """Lets a network learn, one document after the other.

    Args:
        network: a `PreTrainedModel` with a language head; from now on it stands in this object's hands, until `close`.
        adaptation: how it learns.

    Raises:
        UserError: its weights cannot learn.
    """

    def __init__(self, network: Any, adaptation: Adaptation) -> None:
        self.adaptation = adaptation
        self._network = network
        self._trained_before = {name for name, weight in network.named_parameters() if weight.requires_grad}
        self._model = network.requires_grad_(False)
        if adaptation.rank is None:
            self._weights = [weight for weight in network.parameters() if weight.is_floating_point()]
            if len(self._weights) < len(list(network.parameters())):
                raise UserError("adaptation.rank=null: some of the model's weights are integers, which cannot learn.")
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                config = LoraConfig(r=adaptation.rank, lora_alpha=2 * adaptation.rank, target_modules="all-linear")
                self._model = get_peft_model(network, config)
            self._weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        self._first = [weight.detach().clone() for weight in self._weights]
        self._optimizer: torch.optim.Optimizer | None = None

    @contextmanager
    def document(self) -> Iterator[None]:
        """A text from its beginning: behind it all weights are bit for bit what they were."""
        for weight in self._weights:
            weight.requires_grad_(True)
        self._optimizer = torch.optim.Adam(self._weights, lr=self.adaptation.lr)
        try:
            with evaluating(self._network):
                yield
        finally:
            self._optimizer = None
            with torch.no_grad():
                for weight, first in zip(self._weights, self._first, strict=True):
                    weight.grad = None
                    weight.copy_(first)
                    weight.requires_grad_(False)

    def read(self, before: Tensor, tokens: Tensor, learn: bool = True) -> Tensor:
        """The log-probabilities of tokens, chunk after chunk, each before the network has learned from it.

        Args:
            before: (m,) int64 what stands before them, at least one token.
            tokens: (n,) int64.
            learn: whether the last chunk is learned from too.

        Returns:
            (n,) float32 on the CPU.
        """
        found, size = [], self.adaptation.chunk
        for first in range(0, len(tokens), size):
            context = torch.cat([before, tokens[:first]])
            is_last = first + size >= len(tokens)
            found.append(self._read_chunk(context, tokens[first : first + size], learn or not is_last))
        return torch.cat(found) if found else torch.zeros(0)

    def _read_chunk(self, context: Tensor, chunk: Tensor, learn: bool) -> Tensor:
        packed = pack_completions([context], [chunk], self._network.device)
        found = None
        for _ in range(self.adaptation.steps if learn else 1):
            with torch.set_grad_enabled(learn):
                logprobs = states_and_logprobs(self._model, packed, 1.0, with_entropies=False)[1].logprobs
                loss = -logprobs.mean()
            found = logprobs.detach().float().cpu() if found is None else found
            if learn:
                assert self._optimizer is not None
                loss.backward()
                nn.utils.clip_grad_norm_(self._weights, MAX_GRADIENT_NORM)
                self._optimizer.step()
                self._optimizer.zero_grad()
        assert found is not None
        return found

    def close(self) -> None:
        """Give the network back as it was."""
        if self.adaptation.rank is not None:
            self._model.unload()
        for name, weight in self._network.named_parameters():
            weight.requires_grad_(name in self._trained_before)
