"""The control of `benchmarks/distillation.py`: no teacher, only less probability for what the model finds unlikely.

What a teacher brings has to be more than this brings. Each token below a fixed probability has the advantage -1 and all
others have none, as in arXiv:2608.31046; the policy gradient of that, in expectation over the vocabulary, is the
gradient of the probability that all such tokens have together.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llm_lightning.models.heads import hidden_states, output_head
from llm_lightning.modules import CausalPretraining


class UnlikelyTokens(CausalPretraining):
    """Next-token prediction and, beside it, less of the unlikely.

    Args:
        threshold: tokens below this probability are unlikely.
        weight: of what they have together, against that of the next token's loss.
        kwargs: see `CausalPretraining`.
    """

    def __init__(self, *args: Any, threshold: float = 1e-4, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threshold, self.weight = threshold, weight

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        states = hidden_states(self.model, batch).flatten(0, 1).index_select(0, batch["target_positions"])
        logits, targets = output_head(self.model)(states).float(), batch["targets"]
        nll = F.cross_entropy(logits, targets, reduction="sum")
        loss = nll + self.weight * unlikely_mass(logits, self.threshold).sum()
        self.step.collect(
            loss=loss,
            nll=nll.detach(),
            correct=(logits.detach().argmax(-1) == targets).sum(),
            tokens=self._num_tokens(batch),
            bytes=self._num_bytes(targets),
        )
        return loss


def unlikely_mass(logits: Tensor, threshold: float) -> Tensor:
    """(N,) what tokens below `threshold` have together.

    Args:
        logits: (N, V).
        threshold: which they are is decided without a gradient.
    """
    probabilities = logits.softmax(-1)
    return (probabilities * (probabilities.detach() < threshold)).sum(-1)
