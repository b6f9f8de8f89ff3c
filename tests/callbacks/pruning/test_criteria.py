"""Criteria against their formulas, in float64 by loops."""

import pytest
import torch
import torch.nn.functional as F

from callbacks import CallbackError
from callbacks.pruning import NM, Magnitude, Movement, Structured, Taylor, Unstructured, Wanda
from callbacks.pruning.criteria import in_order
from callbacks.pruning.weights import find_weights
from tests.callbacks.tiny_llama import tiny_network


@pytest.fixture
def network():
    torch.manual_seed(0)
    return tiny_network()


@pytest.fixture
def batches():
    return [torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(i)) for i in range(3)]


def named(weights, part):
    return next(weight for weight in weights if part in weight.name)


def test_magnitude(network):
    weight = find_weights(network, None, ())[3]
    assert torch.equal(Magnitude().score(weight), weight.parameter.abs())


def test_wanda_is_the_weight_times_the_norm_of_its_input(network, batches):
    weights, criterion = find_weights(network, None, ()), Wanda()
    criterion.attach(weights, ())
    seen = {}
    for part in ("0.self_attn.o_proj", "1.mlp.down_proj", "1.mlp.gate_proj"):
        layer = network.model.layers[int(part[0])].get_submodule(part[2:])
        layer.register_forward_pre_hook(lambda m, args, part=part: seen.setdefault(part, []).append(args[0].detach()))
    for input_ids in batches:
        network(input_ids=input_ids)
        criterion.after_step()
    network.eval()
    network(input_ids=batches[0])  # a validation is not counted
    for part, inputs in seen.items():
        x = torch.cat([each.flatten(0, 1) for each in inputs[: len(batches)]]).double()
        weight = named(weights, part)
        expected = torch.empty(weight.shape, dtype=torch.float64)
        for i in range(weight.shape[0]):
            for j in range(weight.shape[1]):
                expected[i, j] = abs(float(weight.parameter[i, j])) * sum(float(v) ** 2 for v in x[:, j]) ** 0.5
        torch.testing.assert_close(criterion.score(weight).double(), expected, rtol=1e-5, atol=1e-8)


def test_taylor_is_the_root_of_the_summed_squares_of_weight_times_gradient(network, batches):
    weights, criterion = find_weights(network, None, ()), Taylor()
    criterion.attach(weights, ())
    weight = named(weights, "1.mlp.up_proj")
    expected = torch.zeros(weight.shape, dtype=torch.float64)
    for input_ids in batches:
        network.zero_grad()
        network(input_ids=input_ids, labels=input_ids).loss.backward()
        criterion.before_step(weights)
        expected += (weight.parameter.double() * weight.parameter.grad.double()) ** 2
    torch.testing.assert_close(criterion.score(weight).double(), expected.sqrt(), rtol=1e-5, atol=1e-9)
    weight.parameter.grad.fill_(float("inf"))
    before = criterion.score(weight).clone()
    criterion.before_step(weights)  # a step that the module leaves out
    assert torch.equal(criterion.score(weight), before)


def test_movement_keeps_what_training_moves_away_from_zero(network, batches):
    """The order of the sums of -w g, by loops in float64."""
    weights, criterion = find_weights(network, None, ()), Movement()
    criterion.attach(weights, ())
    weight = named(weights, "1.mlp.up_proj")
    rows, columns = weight.shape
    sums = [[0.0] * columns for _ in range(rows)]
    for input_ids in batches:
        network.zero_grad()
        network(input_ids=input_ids, labels=input_ids).loss.backward()
        criterion.before_step(weights)
        for i in range(rows):
            for j in range(columns):
                sums[i][j] -= float(weight.parameter[i, j]) * float(weight.parameter.grad[i, j])
    score = criterion.score(weight)
    assert (score >= 0).all() and min(map(min, sums)) < 0 < max(map(max, sums))
    order = sorted((value, i * columns + j) for i, row in enumerate(sums) for j, value in enumerate(row))
    ranks = score.flatten()[[place for _, place in order]]
    assert (ranks.diff() >= 0).float().mean() > 0.999  # sums in float32 may swap neighbours
    half = {place for _, place in order[: len(order) // 2]}
    assert len(half & set(score.flatten().argsort()[: len(half)].tolist())) >= len(half) - 2


def test_negative_scores_come_before_positive_ones_in_their_order():
    values = torch.tensor(
        [-3.4028234e38, -3e38, -1.5, -1e-30, -0.0, 0.0, 1e-42, 1e-30, 1.4999, 1.5, 3e38, 3.4028234e38]
    )
    found = in_order(values)
    assert found.isfinite().all() and (found >= 0).all()
    assert (found.diff() >= 0).all() and found.unique().numel() == 11


@pytest.mark.parametrize("criterion", [Taylor, Movement])
def test_what_needs_gradients_refuses_frozen_weights(network, criterion):
    network.requires_grad_(False)
    with pytest.raises(CallbackError, match=f"{criterion.__name__} needs gradients.*frozen"):
        criterion().attach(find_weights(network, None, ()), ())


def test_a_block_is_worth_one_minus_the_cosine_of_what_it_does(network, batches):
    criterion = Wanda()
    criterion.attach([], network.model.layers)
    network.eval()
    states = [network.model(input_ids=x, output_hidden_states=True).hidden_states for x in batches]
    network.train()
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.0
    for input_ids in batches:
        network(input_ids=input_ids)
        criterion.after_step()
    # The last hidden state is behind the final norm, so that the first block alone is at hand.
    cosines = torch.cat([F.cosine_similarity(s[0].double(), s[1].double(), dim=-1).flatten() for s in states])
    assert criterion.block_score(0) == pytest.approx(float((1 - cosines).mean()), rel=1e-4)


def test_what_was_gathered_weighs_half_after_the_masks_changed(network, batches):
    weights, criterion = find_weights(network, None, ()), Wanda()
    criterion.attach(weights, ())
    network(input_ids=batches[0])
    criterion.after_step()
    before = criterion.score(weights[0])
    criterion.forget()
    torch.testing.assert_close(criterion.score(weights[0]) ** 2, before**2 / 2)


class Fixed(Magnitude):
    """Scores that are given."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, weight):
        return self.scores[weight.name]


def test_two_of_four_keeps_the_two_highest_of_each_group(network):
    weights = find_weights(network, ["*.0.mlp.up_proj.weight"], ())
    scores = torch.rand(weights[0].shape, generator=torch.Generator().manual_seed(3))
    scores[0, :4] = torch.tensor([2.0, 2.0, 2.0, 2.0])
    masks = NM().masks(weights, Fixed({weights[0].name: scores}), {}, 1.0)[weights[0].name]
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], 4):
            group = scores[row, start : start + 4]
            highest = group.argsort(stable=True)[2:].tolist()
            assert masks[row, start : start + 4].nonzero()[:, 0].tolist() == sorted(highest)


def test_outliers_decide_a_layers_sparsity(network):
    """OWL: the share of scores above five times the layer's mean, spread over twice 0.08."""
    weights = find_weights(network, ["*.mlp.up_proj.weight"], ())
    scores = {weight.name: torch.ones(weight.shape) for weight in weights}
    scores[weights[0].name].view(-1)[:20] = 1000.0
    structure = Unstructured(0.5, layers="sensitivity")
    structure.masks(weights, Fixed(scores), {}, 1.0)
    assert structure.targets == pytest.approx({weights[0].name: 0.42, weights[1].name: 0.58})


def test_a_channel_is_worth_the_norm_of_what_it_adds(network, batches):
    weights, criterion = find_weights(network, None, ()), Wanda()
    structure = Structured(channels=0.25)
    structure.attach(network, weights)
    criterion.attach(weights, ())
    for input_ids in batches:
        network(input_ids=input_ids)
        criterion.after_step()
    masks = structure.masks(weights, criterion, {}, 1.0)
    down = named(weights, "0.mlp.down_proj")
    worth = criterion.score(down).double().square().sum(0)
    kept = masks[down.name][0]
    assert kept.sum() == 48 and worth[~kept].max() < worth[kept].min()
    for part in ("gate_proj", "up_proj"):
        assert torch.equal(masks[named(weights, f"0.mlp.{part}").name][:, 0], kept)
