"""The Bradley-Terry loss of preference pairs, and the options that reward modelling adds to it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BradleyTerry:
    """P(chosen beats rejected) = sigmoid(difference of their rewards) (Bradley & Terry, 1952), as a loss on pairs.

    The loss of a pair is -p log sigmoid(z) - (1 - p) log sigmoid(-z), with
    z = chosen - rejected - margin + length_penalty * (tokens of chosen - tokens of rejected),
    p = 1 - label_smoothing, or a half for a tie, whose margin is nothing; and centering * (chosen + rejected)^2 on top.

    Args:
        label_smoothing: probability that a label is wrong (cDPO's; Mitchell, 2023).
        centering: factor on the squared sum of a pair's rewards, which keeps their mean near zero (Eisenstein et al.,
            arXiv:2312.09244, use 0.01); without it only differences mean something.
        length_penalty: what a token more is taken to explain of a preference. The rewards have to explain the rest,
            so that length earns nothing of its own. 0.001 to 0.01 is a usual size.
        margin_scale: factor on the margins that come with the data (Llama 2, arXiv:2307.09288).
    """

    label_smoothing: float = 0.0
    centering: float = 0.0
    length_penalty: float = 0.0
    margin_scale: float = 1.0

    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        ties: Tensor | None = None,
        margins: Tensor | None = None,
        length_difference: Tensor | None = None,
    ) -> Tensor:
        """Losses (N,), in nats and differentiable.

        Args:
            chosen, rejected: rewards (N,).
            ties: (N,) bool, where neither response is better; None for nowhere.
            margins: (N,) by how much a chosen response is to win; None for 0.
            length_difference: (N,) tokens that the chosen response has more; needed with a length penalty.
        """
        z = chosen - rejected
        tied = torch.zeros_like(z, dtype=torch.bool) if ties is None else ties
        if margins is not None:
            z = z - self.margin_scale * margins.to(z.dtype).masked_fill(tied, 0.0)
        if self.length_penalty:
            assert length_difference is not None
            z = z + self.length_penalty * length_difference.to(z.dtype)
        p = torch.full_like(z, 1 - self.label_smoothing).masked_fill(tied, 0.5)
        losses = -p * F.logsigmoid(z) - (1 - p) * F.logsigmoid(-z)
        return losses + self.centering * (chosen + rejected).square() if self.centering else losses
