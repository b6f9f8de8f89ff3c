"""Losses that make preferred answers likelier, each a function of log-probabilities alone.

Shapes: N pairs, or N single answers for KTO. The log-probability of an answer is the sum over its tokens, in nats;
`num_tokens` is how many these are. What an answer is worth to the policy, its implicit reward, is

    beta * (logprob - reference's logprob)      dpo, robust, hinge, kto
    the same divided by num_tokens              dpo_norm, ipo
    beta * logprob / num_tokens                 simpo, orpo: no reference

and `margin` is the chosen answer's reward less the rejected one's.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["dpo", "robust", "hinge", "ipo", "dpo_norm", "kto", "orpo", "simpo"]


class Known(NamedTuple):
    """What is known to work.

    Args:
        beta: the default.
        betas: from the smallest to the largest one in published recipes.
        rates: learning rates of the same recipes, for a whole network.
        averages: whether log-probabilities are divided by the tokens.
        needs_reference: whether those of a reference are subtracted.
    """

    beta: float
    betas: tuple[float, float]
    rates: tuple[float, float]
    averages: bool = False
    needs_reference: bool = True


KNOWN: dict[Kind, Known] = {
    # Zephyr, Tulu 3 and SimPO's sweep: 5e-7 at 7 to 8 B and beta 0.01 to 0.1; the RLHF book: 5e-6 at 1 B.
    "dpo": Known(0.1, (0.01, 0.5), (1e-7, 5e-6)),
    "robust": Known(0.1, (0.01, 0.5), (1e-7, 5e-6)),
    "hinge": Known(0.1, (0.01, 1.0), (1e-7, 5e-6)),
    "ipo": Known(0.1, (0.01, 1.0), (1e-7, 5e-6), averages=True),
    "dpo_norm": Known(5.0, (2.0, 10.0), (1e-7, 5e-6), averages=True),  # Tulu 3, arXiv:2411.15124
    "kto": Known(0.1, (0.01, 0.5), (5e-7, 5e-6)),
    "orpo": Known(0.1, (0.05, 0.5), (1e-6, 1e-5), averages=True, needs_reference=False),
    "simpo": Known(2.0, (2.0, 10.0), (3e-7, 1e-6), averages=True, needs_reference=False),  # 1e-5 destroys a model
}


def sigmoid_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO (arXiv:2305.18290), and cDPO where a label is wrong with the probability `label_smoothing` (Mitchell, 2023).

    Args:
        margin: (N,).
        label_smoothing: from 0 to below a half.
    """
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """DPO without the bias of labels that are wrong with the probability `label_smoothing` (arXiv:2403.00409)."""
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def hinge_loss(margin: Tensor) -> Tensor:
    """Nothing to learn beyond a margin of 1 (SLiC, arXiv:2305.10425, on DPO's rewards as in RSO, arXiv:2309.06657)."""
    return F.relu(1 - margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """The difference of the log-ratios is pulled to 1 / (2 beta), and not beyond it (arXiv:2310.12036).

    Args:
        margin: (N,) of log-ratios averaged over tokens, as the paper's authors advise.
        beta: the paper's tau.
    """
    return (margin / beta - 1 / (2 * beta)).square()


def simpo_loss(margin: Tensor, target_margin: float) -> Tensor:
    """The chosen answer's mean log-probability is to win by a margin, gamma (arXiv:2405.14734)."""
    return -F.logsigmoid(margin - target_margin)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ORPO's part that compares (arXiv:2403.07691): -log sigmoid of the logarithm of the ratio of the answers' odds.

    Args:
        chosen, rejected: (N,) mean log-probabilities of a token, below 0.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -F.logsigmoid(log_odds)


def kto_loss(rewards: Tensor, is_desirable: Tensor, baseline: Tensor, weights: tuple[float, float]) -> Tensor:
    """One minus the value of an answer to somebody who minds losses as in prospect theory (arXiv:2402.01306).

    Args:
        rewards: (N,).
        is_desirable: (N,) bool.
        baseline: () the reference point: beta times an estimate of the KL from the reference, at least 0, without
            gradient.
        weights: of desirable and of undesirable answers.
    """
    values = torch.sigmoid(torch.where(is_desirable, rewards - baseline, baseline - rewards))
    return torch.where(is_desirable, *weights) * (1 - values)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler, 2012)."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)  # an answer that is certain has infinite odds
    near = x > -0.6931471805599453
    # Each branch is given numbers that are harmless to it, since gradients flow through both.
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


class Answers(NamedTuple):
    """N answers as policy and reference see them.

    Args:
        logprobs: (N,) of the policy.
        num_tokens: (N,).
        ref_logprobs: (N,) of the reference; None for losses without one.
    """

    logprobs: Tensor
    num_tokens: Tensor
    ref_logprobs: Tensor | None = None

    def every_other(self, first: int) -> "Answers":
        """From the `first` on: of pairs whose answers follow each other, one side."""
        reference = None if self.ref_logprobs is None else self.ref_logprobs[first::2]
        return Answers(self.logprobs[first::2], self.num_tokens[first::2], reference)

    @property
    def means(self) -> Tensor:
        """(N,) mean log-probability of a token."""
        return self.logprobs / self.num_tokens.clamp(min=1)


@dataclass(frozen=True)
class PreferenceLoss:
    """What a pair, or with KTO an answer, costs.

    Args:
        kind: `dpo`, `robust`, `hinge`, `ipo`, `dpo_norm` (DPO on log-probabilities averaged over tokens), `kto`, `orpo`
            or `simpo`; see the functions of this file.
        beta: how much a nat of the policy's departure is worth: small ones let it go far. By default 0.1, of SimPO 2
            and of `dpo_norm` 5.
        label_smoothing: probability that a label is wrong, for `dpo`, `dpo_norm` and `robust`.
        sft_weight: factor on the mean negative log-likelihood of a chosen answer's tokens, added to the loss (RPO,
            arXiv:2404.19733, has 1). None: nothing, but 1 with `orpo`, whose paper has it so.
        target_margin_ratio: SimPO's gamma / beta.
        desirable_weight, undesirable_weight: of KTO. Its paper wants (desirable_weight * how many are desirable) /
            (undesirable_weight * how many are not) to be between 1 and 4 / 3.
    """

    kind: Kind = "dpo"
    beta: float | None = None
    label_smoothing: float = 0.0
    sft_weight: float | None = None
    target_margin_ratio: float = 0.5
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def known(self) -> Known:
        """See `KNOWN`."""
        return KNOWN[self.kind]

    @property
    def strength(self) -> float:
        """Beta, by default the usual one."""
        return self.known.beta if self.beta is None else self.beta

    @property
    def sft(self) -> float:
        """The weight of the negative log-likelihood."""
        return float(self.kind == "orpo") if self.sft_weight is None else self.sft_weight

    def rewards(self, answers: Answers) -> Tensor:
        """(N,) implicit rewards."""
        values = answers.logprobs
        if self.known.needs_reference:
            assert answers.ref_logprobs is not None
            values = values - answers.ref_logprobs
        return self.strength * (values / answers.num_tokens.clamp(min=1) if self.known.averages else values)

    def of_pairs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(N,) losses of pairs, with gradient; not for KTO."""
        losses = self._compare(chosen, rejected)
        return losses - self.sft * chosen.means if self.sft else losses

    def baseline(self, kl: Tensor) -> Tensor:
        """() KTO's reference point, the reward of an answer that is neither good nor bad; without gradient.

        Args:
            kl: () nats from the reference, estimated over the whole step; what is below 0 is taken for 0.
        """
        return self.strength * kl.detach().clamp(min=0)

    def of_answers(self, answers: Answers, is_desirable: Tensor, kl: Tensor) -> Tensor:
        """(N,) KTO's losses of answers, with gradient.

        Args:
            answers: N of them.
            is_desirable: (N,) bool.
            kl: see `baseline`.
        """
        weights = self.desirable_weight, self.undesirable_weight
        losses = kto_loss(self.rewards(answers), is_desirable, self.baseline(kl), weights)
        return losses - self.sft * torch.where(is_desirable, answers.means, 0.0) if self.sft else losses

    def _compare(self, chosen: Answers, rejected: Answers) -> Tensor:
        if self.kind == "orpo":
            return self.strength * odds_ratio_loss(chosen.means, rejected.means)
        margin = self.rewards(chosen) - self.rewards(rejected)
        if self.kind == "robust":
            return robust_loss(margin, self.label_smoothing)
        if self.kind == "hinge":
            return hinge_loss(margin)
        if self.kind == "ipo":
            return ipo_loss(margin, self.strength)
        if self.kind == "simpo":
            return simpo_loss(margin, self.strength * self.target_margin_ratio)
        assert self.kind != "kto"
        return sigmoid_loss(margin, self.label_smoothing)
