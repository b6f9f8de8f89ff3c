"""Noise on embeddings, while fine-tuning."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from callbacks.contract import HoldsNetwork, required
from callbacks.errors import CallbackError
from callbacks.network import base_network


class NEFTune(Callback):
    """Adds uniform noise of at most alpha / sqrt(L d) to the embeddings in training (arXiv:2310.05914).

    d is the size of an embedding, and L the tokens of its own text: where several texts share a row, each has the noise
    that it would have alone. Validation, samples and rollouts have none.

    Args:
        alpha: How much; 5 to 15 in the paper, for instructions.

    Raises:
        CallbackError: alpha is not above 0.
    """

    def __init__(self, alpha: float = 5.0) -> None:
        if not 0 < alpha < math.inf:
            raise CallbackError(f"NEFTune.alpha={alpha} must be above 0; the paper's are 5 to 15.")
        self.alpha = alpha
        self._lengths: Tensor | None = None
        self._hook: RemovableHandle | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = base_network(required(pl_module, HoldsNetwork, self).model)
        self._hook = network.get_input_embeddings().register_forward_hook(self._add_noise)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        positions = batch.get("position_ids") if isinstance(batch, Mapping) else None
        self._lengths = None if positions is None else text_lengths(positions)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._lengths = None

    def _add_noise(self, embeddings: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not (embeddings.training and torch.is_grad_enabled()):
            return None
        num_tokens, size = output.shape[-2:]
        lengths: Tensor | float = float(num_tokens)
        if self._lengths is not None and self._lengths.shape == output.shape[:-1]:
            lengths = self._lengths.unsqueeze(-1).to(output.dtype)
        most = self.alpha / (lengths * size) ** 0.5
        return output + torch.empty_like(output).uniform_(-1, 1) * most


def text_lengths(position_ids: Tensor) -> Tensor:
    """(B, T) of each token the length of its text; a text begins where `position_ids` (B, T) is 0."""
    begins = (position_ids == 0).flatten()
    begins[:: position_ids.shape[1]] = True
    number = begins.cumsum(0) - 1
    return torch.bincount(number)[number].view_as(position_ids)
