"""Noise on embeddings, while fine-tuning."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.regularization.noise import Noise, is_training


class NEFTune(Noise):
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
        super().__init__()
        self.alpha = alpha
        self._lengths: Tensor | None = None

    @override
    def attach(self, network: Any) -> list[RemovableHandle]:
        return [network.get_input_embeddings().register_forward_hook(self._add_noise)]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        positions = batch.get("position_ids") if isinstance(batch, Mapping) else None
        self._lengths = None if positions is None else text_lengths(positions)

    def _add_noise(self, embeddings: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not is_training(embeddings):
            return None
        num_tokens, size = output.shape[-2:]
        if self._lengths is not None and self._lengths.shape == output.shape[:-1]:
            lengths = self._lengths.unsqueeze(-1).to(output.device)
        else:
            lengths = torch.tensor(num_tokens, device=output.device)
        most = (self.alpha / (lengths * size).float().sqrt()).to(output.dtype)
        return output + torch.empty_like(output).uniform_(-1, 1) * most


def text_lengths(position_ids: Tensor) -> Tensor:
    """(B, T) of each token the length of its text; a text begins where `position_ids` (B, T) is 0."""
    begins = (position_ids == 0).flatten()
    begins[:: position_ids.shape[1]] = True
    number = begins.cumsum(0) - 1
    return torch.bincount(number)[number].view_as(position_ids)
