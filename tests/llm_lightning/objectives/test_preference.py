"""Bradley-Terry and its options against the formula, written out for each pair in plain Python."""

import math

import pytest
import torch

from llm_lightning.objectives.preference import BradleyTerry

CHOSEN, REJECTED = [0.3, -1.2, 4.0, 0.5, -30.0], [0.1, 0.7, -2.0, 0.5, 30.0]
TIES, MARGINS = [False, False, False, True, False], [0.0, 1.5, -0.5, 9.0, 0.25]
LONGER = [3, -40, 0, 17, 200]


def by_hand(index, smoothing, centering, length_penalty, margin_scale, ties, margins):
    c, r = CHOSEN[index], REJECTED[index]
    tie = ties and TIES[index]
    z = c - r + length_penalty * LONGER[index]
    if margins and not tie:
        z -= margin_scale * MARGINS[index]
    p = 0.5 if tie else 1 - smoothing
    # log(sigmoid(z)) = -log(1 + exp(-z)), far from overflow at these sizes
    wins, loses = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    slope = -p / (1 + math.exp(z)) + (1 - p) / (1 + math.exp(-z))
    pull = 2 * centering * (c + r)
    return p * wins + (1 - p) * loses + centering * (c + r) ** 2, slope + pull, -slope + pull


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize(
    ("smoothing", "centering", "length_penalty", "margin_scale"),
    [(0, 0, 0, 1), (0.1, 0, 0, 1), (0, 0.01, 0, 1), (0, 0, 0.01, 1), (0.05, 0.02, 0.003, 0.5)],
)
def test_loss_and_gradients_equal_the_formula(ties, margins, smoothing, centering, length_penalty, margin_scale):
    chosen, rejected = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (CHOSEN, REJECTED))
    objective = BradleyTerry(smoothing, centering, length_penalty, margin_scale)
    losses = objective(
        chosen, rejected, ties=torch.tensor(TIES) if ties else None, margins=torch.tensor(MARGINS) if margins else None,
        length_difference=torch.tensor(LONGER),
    )  # fmt: skip
    losses.sum().backward()
    settings = (smoothing, centering, length_penalty, margin_scale, ties, margins)
    expected = torch.tensor([by_hand(i, *settings) for i in range(len(CHOSEN))], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([losses, chosen.grad, rejected.grad], 1), expected, rtol=1e-12, atol=1e-12)


def test_a_pair_of_equal_rewards_costs_a_coin_toss():
    reward = torch.zeros(3)
    assert torch.allclose(BradleyTerry()(reward, reward), torch.full((3,), math.log(2)))


def test_a_tie_pulls_its_rewards_together_from_both_sides():
    chosen, rejected = torch.tensor([2.0, -2.0], requires_grad=True), torch.zeros(2)
    BradleyTerry()(chosen, rejected, ties=torch.tensor([True, True])).sum().backward()
    assert chosen.grad[0] > 0 > chosen.grad[1]


def test_huge_differences_stay_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    losses = BradleyTerry(label_smoothing=0.1)(chosen, -chosen.detach())
    losses.sum().backward()
    assert losses.isfinite().all() and chosen.grad.isfinite().all()
