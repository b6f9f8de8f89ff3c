"""Every loss and its gradient against the formula, written out for each pair in plain Python floats."""

import math

import pytest
import torch

from llm_lightning.objectives.preference_optimization import KNOWN, Answers, PreferenceLoss

CHOSEN, REJECTED = [-12.5, -3.0, -80.0, -0.75, -41.0], [-14.0, -2.5, -60.0, -9.0, -41.0]
REF_CHOSEN, REF_REJECTED = [-13.0, -2.0, -95.0, -0.5, -40.0], [-12.0, -4.0, -58.0, -7.5, -43.5]
CHOSEN_TOKENS, REJECTED_TOKENS = [7, 2, 60, 1, 30], [9, 4, 31, 5, 12]
H = 1e-5


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):  # -log sigmoid(-x)
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def by_hand(kind, i, c, r, beta, smoothing, sft, ratio):
    """The published formula of one pair whose answers have the log-probabilities c and r."""
    n, m = CHOSEN_TOKENS[i], REJECTED_TOKENS[i]
    delta = (c - REF_CHOSEN[i]) - (r - REF_REJECTED[i])
    averaged = (c - REF_CHOSEN[i]) / n - (r - REF_REJECTED[i]) / m
    z = beta * (averaged if kind == "dpo_norm" else delta)
    loss = {
        "dpo": lambda: (1 - smoothing) * softplus(-z) + smoothing * softplus(z),
        "dpo_norm": lambda: (1 - smoothing) * softplus(-z) + smoothing * softplus(z),
        "robust": lambda: ((1 - smoothing) * softplus(-z) - smoothing * softplus(z)) / (1 - 2 * smoothing),
        "hinge": lambda: max(0.0, 1 - z),
        "ipo": lambda: (averaged - 1 / (2 * beta)) ** 2,
        "simpo": lambda: softplus(-(beta * (c / n - r / m) - beta * ratio)),
        "orpo": lambda: beta * softplus(-(math.log(odds(c / n)) - math.log(odds(r / m)))),
    }[kind]()
    return loss - sft * c / n


def odds(mean):
    return math.exp(mean) / (1 - math.exp(mean))


def slope(function, x):
    """By five points: exact to about 1e-9 here."""
    f = [function(x + k * H) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * H)


def answers(logprobs, reference, tokens):
    logprobs = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    return Answers(logprobs, torch.tensor(tokens), torch.tensor(reference, dtype=torch.float64))


@pytest.mark.parametrize("kind", [kind for kind in KNOWN if kind != "kto"])
@pytest.mark.parametrize(
    ("beta", "smoothing", "sft", "ratio"), [(None, 0.0, None, 0.5), (0.3, 0.2, 0.7, 0.25), (3.0, 0.05, 0.0, 1.0)]
)
def test_losses_and_gradients_of_pairs_equal_the_formulas(kind, beta, smoothing, sft, ratio):
    loss = PreferenceLoss(kind, beta, smoothing, sft, ratio)
    chosen = answers(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS)
    rejected = answers(REJECTED, REF_REJECTED, REJECTED_TOKENS)
    losses = loss.of_pairs(chosen, rejected)
    losses.sum().backward()
    used = (KNOWN[kind].beta if beta is None else beta, smoothing, float(kind == "orpo") if sft is None else sft, ratio)
    for i, (c, r) in enumerate(zip(CHOSEN, REJECTED, strict=True)):
        assert losses[i].item() == pytest.approx(by_hand(kind, i, c, r, *used), rel=1e-12, abs=1e-12)
        of_chosen = slope(lambda x, i=i, r=r: by_hand(kind, i, x, r, *used), c)
        of_rejected = slope(lambda x, i=i, c=c: by_hand(kind, i, c, x, *used), r)
        assert chosen.logprobs.grad[i].item() == pytest.approx(of_chosen, rel=1e-6, abs=1e-8)
        assert rejected.logprobs.grad[i].item() == pytest.approx(of_rejected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kl", [0.0, 3.5, -2.0])
@pytest.mark.parametrize("desirable", [[True, False, True, False, True], [True] * 5, [False] * 5])
def test_kto_equals_its_formula(kl, desirable):
    loss = PreferenceLoss("kto", 0.2, sft_weight=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    these = answers(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS)
    losses = loss.of_answers(these, torch.tensor(desirable), torch.tensor(kl, dtype=torch.float64))
    losses.sum().backward()
    for i, good in enumerate(desirable):

        def by_formula(x, i=i, good=good):
            z = 0.2 * ((x - REF_CHOSEN[i]) - max(kl, 0.0))
            value = 1.5 * (1 - sigmoid(z)) if good else 0.5 * (1 - sigmoid(-z))
            return value - (0.3 * x / CHOSEN_TOKENS[i] if good else 0.0)

        assert losses[i].item() == pytest.approx(by_formula(CHOSEN[i]), rel=1e-12)
        assert these.logprobs.grad[i].item() == pytest.approx(slope(by_formula, CHOSEN[i]), rel=1e-6, abs=1e-9)


def test_the_kl_has_no_gradient():
    kl = torch.tensor(2.0, requires_grad=True)
    these = answers(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS)
    PreferenceLoss("kto").of_answers(these, torch.tensor([True] * 5), kl).sum().backward()
    assert kl.grad is None


@pytest.mark.parametrize("kind", [kind for kind in KNOWN if kind != "kto"])
def test_extreme_answers_stay_finite(kind):
    """Certain ones, impossible ones, and such without a token."""
    logprobs = torch.tensor([0.0, -1e-9, -5e4, 0.0], requires_grad=True)
    tokens, reference = torch.tensor([3, 1, 9, 0]), torch.tensor([-5e4, 0.0, 0.0, 0.0])
    other = Answers(torch.tensor([-5e4, -3.0, 0.0, 0.0]), tokens, torch.zeros(4))
    losses = PreferenceLoss(kind).of_pairs(Answers(logprobs, tokens, reference), other)
    losses.sum().backward()
    assert losses.isfinite().all() and logprobs.grad.isfinite().all()


def test_before_training_every_loss_of_a_reference_is_that_of_no_opinion():
    for kind, expected in {"dpo": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 25.0}.items():
        same = answers(CHOSEN, CHOSEN, CHOSEN_TOKENS)
        other = answers(REJECTED, REJECTED, REJECTED_TOKENS)
        assert PreferenceLoss(kind, 0.1).of_pairs(same, other).tolist() == pytest.approx([expected] * 5)
