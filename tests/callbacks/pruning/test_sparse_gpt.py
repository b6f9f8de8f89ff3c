"""SparseGPT against the paper's algorithm, by loops in float64, and in a fit."""

import pytest
import torch

from callbacks import CallbackError, Pruning
from callbacks.pruning import NM, Constant, Cubic, OneShot, SparseGPT, Structured, Unstructured, Wanda
from callbacks.pruning.sparse_gpt import prune_columns, refine
from callbacks.pruning.weights import Weight, find_weights
from tests.callbacks.pruning.fits import Chosen, fit
from tests.callbacks.tiny_llama import tiny_network


@pytest.fixture
def layer():
    """A weight (6, 16) and X^T X of correlated inputs, in float64."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=g, dtype=torch.float64)
    inputs = torch.randn(64, 16, generator=g, dtype=torch.float64) @ mixing
    products = inputs.T @ inputs
    products += 0.01 * products.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    return torch.randn(6, 16, generator=g, dtype=torch.float64), products


def obs_by_loops(weight, products, width, num_pruned):
    """Algorithm 1 of the paper without its Cholesky factors: the inverse is that of the columns that are left."""
    weight, (rows, columns) = weight.clone(), weight.shape
    kept = torch.ones_like(weight, dtype=torch.bool)
    for column in range(columns):
        if column % width == 0:
            costs = {}
            left = {}
            for at in range(column, min(column + width, columns)):
                left[at] = torch.linalg.inv(products[at:, at:])
                for row in range(rows):
                    costs[row, at] = float(weight[row, at]) ** 2 / float(left[at][0, 0])
            for row, at in num_pruned(costs):
                kept[row, at] = False
        inverse = torch.linalg.inv(products[column:, column:])
        for row in range(rows):
            if kept[row, column]:
                continue
            error = float(weight[row, column]) / float(inverse[0, 0])
            for at in range(column, columns):
                weight[row, at] -= error * float(inverse[0, at - column])
            weight[row, column] = 0.0
    return weight, kept


def chooser(structure, weight):
    named = Weight("w", torch.nn.Identity(), torch.nn.Parameter(weight))
    return lambda costs, columns: structure.choose(named, costs, columns, "matrix")


def lowest_of_all(costs):
    return sorted(costs, key=costs.get)[: len(costs) // 2]


def two_of_four(costs):
    rows = {row for row, _ in costs}
    of_rows = [sorted((pair for pair in costs if pair[0] == row), key=costs.get)[:2] for row in rows]
    return [pair for pairs in of_rows for pair in pairs]


@pytest.mark.parametrize(
    ("structure", "width", "expected"), [(Unstructured(0.5), 8, lowest_of_all), (NM(), 4, two_of_four)]
)
@pytest.mark.parametrize("block_size", [8, 16])
def test_columns_are_pruned_as_the_paper_has_it(layer, structure, width, expected, block_size):
    weight, products = layer
    pruned, kept = prune_columns(weight, products, chooser(structure, weight), width, block_size)
    wanted, wanted_kept = obs_by_loops(weight, products, width, expected)
    assert torch.equal(kept, wanted_kept)
    torch.testing.assert_close(pruned, wanted, rtol=1e-9, atol=1e-11)


def error(weight, dense, products):
    return float(((weight - dense) @ products * (weight - dense)).sum())


def test_refinement_ends_at_the_least_squares_of_the_weights_that_stay(layer):
    dense, products = layer
    pruned, kept = prune_columns(dense, products, chooser(NM(), dense), 4, 16)
    refined = refine(pruned, dense, products, kept, 40)
    for row in range(len(dense)):
        at = kept[row].nonzero()[:, 0]
        best = torch.linalg.solve(products[at][:, at], products[at] @ dense[row])
        torch.testing.assert_close(refined[row, at], best, rtol=1e-8, atol=1e-9)
        assert not refined[row, ~kept[row]].any()
    errors = [error(refine(pruned, dense, products, kept, steps), dense, products) for steps in range(6)]
    assert errors == sorted(errors, reverse=True) and errors[5] < errors[0]


def test_nothing_moves_where_nothing_is_left_to_gain(layer):
    dense, products = layer
    kept = torch.ones_like(dense, dtype=torch.bool)
    assert torch.equal(refine(dense, dense, products, kept, 20), dense)


def test_inputs_that_are_always_zero_or_alike_are_no_trouble():
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 12, generator=g)
    inputs[:, 3] = 0.0
    inputs[:, 5] = inputs[:, 4]
    weight = torch.randn(4, 12, generator=g)
    criterion = SparseGPT()
    pruned, kept = criterion.solve(weight, inputs.T @ inputs, chooser(NM(), weight), 4)
    assert pruned.isfinite().all() and int(kept.sum()) == 24


@pytest.mark.parametrize("structure", [Unstructured(0.5), NM()])
def test_each_layer_is_nearer_to_the_dense_one_than_by_wanda(tmp_path, structure):
    """On the batches that calibrated, by the inputs that the pruned layers before it leave."""
    errors = {}
    dense = {n: p.clone() for n, p in start().model.named_parameters()}
    for criterion in (SparseGPT(num_batches=8, refinements=0), SparseGPT(num_batches=8)):
        seen = {}
        solve = criterion.solve

        def watched(weight, products, choose, width, solve=solve, seen=seen):
            value, kept = solve(weight, products, choose, width)
            wanda = weight.abs() * products.diagonal().sqrt()
            chosen = choose_like_wanda(wanda, structure)
            seen[len(seen)] = (error(value, weight, products), error(weight * chosen, weight, products))
            return value, kept

        criterion.solve = watched
        pruning = Pruning(structure, criterion, OneShot(end=8))
        module, _ = fit(tmp_path, pruning, module=start(), max_steps=8)
        assert len(seen) == 14
        assert all(ours < wanda for ours, wanda in seen.values())
        errors[criterion.refinements] = sum(ours for ours, _ in seen.values())
        assert pruning.sparsity == pytest.approx(0.5, abs=1e-3)
    assert errors[20] < errors[0]
    after = dict(module.model.named_parameters())
    assert torch.equal(after["lm_head.weight"], dense["lm_head.weight"])
    moved = after["model.layers.0.mlp.up_proj.weight"]
    kept = pruning.masks.kept["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(moved[kept], dense["model.layers.0.mlp.up_proj.weight"][kept])


def start():
    torch.manual_seed(0)
    module = Chosen()
    module.model = tiny_network()
    return module


def choose_like_wanda(scores, structure):
    if isinstance(structure, NM):
        groups = scores.view(len(scores), -1, 4)
        return (groups.argsort(-1).argsort(-1) >= 2).view_as(scores)
    return scores.argsort(1).argsort(1) >= scores.shape[1] // 2


def test_layers_share_inputs_in_stages(tmp_path):
    from callbacks.pruning import reconstruction

    pruning, found = Pruning(NM(), SparseGPT(num_batches=1), OneShot(end=1)), []
    stages = reconstruction._stages

    def watched(block, call, weights):
        found.append([[w.name.split(".")[-2] for w in stage] for stage in stages(block, call, weights)])
        return stages(block, call, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "_stages", watched)
        fit(tmp_path, pruning, max_steps=1)
    assert found == [[["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]] * 2


def test_sensitive_layers_are_given_less(tmp_path):
    pruning = Pruning(Unstructured(0.5, layers="sensitivity"), SparseGPT(), OneShot(end=4))
    fit(tmp_path, pruning, max_steps=4)
    kept = pruning.masks.kept
    shares = {name: 1 - float(mask.float().mean()) for name, mask in kept.items()}
    assert pruning.sparsity == pytest.approx(0.5, abs=2e-3)
    assert all(shares[name] == pytest.approx(target, abs=0.02) for name, target in pruning.structure.targets.items())
    assert len(set(pruning.structure.targets.values())) == 2


def test_in_training_it_prunes_at_once_and_goes_on(tmp_path):
    pruning = Pruning(NM(), SparseGPT(num_batches=2), Constant(begin=3))
    _, zeros = fit(tmp_path, pruning, max_steps=6)
    assert zeros.sparsities == [0, 0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pruning(NM(), SparseGPT(), Cubic()), ["Cubic", "OneShot or Constant"]),
        (lambda: Pruning(Structured(channels=0.5), SparseGPT()), ["Structured", "Unstructured or NM"]),
        (lambda: Pruning(Unstructured(0.5, "network"), SparseGPT()), ["Unstructured", "column by column"]),
        (lambda: SparseGPT(num_batches=0), ["num_batches=0"]),
        (lambda: SparseGPT(damping=0), ["damping=0"]),
    ],
)
def test_settings_that_cannot_work_are_named(make, words):
    with pytest.raises(CallbackError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_outside_the_blocks_is_refused(tmp_path):
    pruning = Pruning(NM(), SparseGPT(), OneShot(end=1), include=["lm_head.weight"])
    with pytest.raises(CallbackError, match=r"lm_head.weight out of Pruning.include"):
        fit(tmp_path, pruning, max_steps=1)


@pytest.mark.parametrize("batch", [{"prompt_ids": torch.zeros(1)}, {"input_ids": torch.zeros(1, 1), "spans": []}])
def test_only_texts_calibrate(batch):
    with pytest.raises(CallbackError, match="texts whose tokens are predicted"):
        SparseGPT().keep(batch)


def test_the_last_batches_calibrate_and_are_in_the_checkpoint():
    criterion, other = SparseGPT(num_batches=2), SparseGPT(num_batches=2)
    for number in range(3):
        tokens = torch.tensor([[number]])
        criterion.keep({"input_ids": tokens, "labels": tokens, "documents": object()})
    other.load_state_dict(criterion.state_dict())
    assert [int(batch["input_ids"]) for batch in other.batches] == [1, 2]


def test_it_is_a_wanda_until_then():
    network = tiny_network()
    weights = find_weights(network, None, ())
    ours, wanda = SparseGPT(), Wanda()
    for criterion in (ours, wanda):
        criterion.attach(weights, ())
    network(input_ids=torch.arange(3, 19)[None])
    for criterion in (ours, wanda):
        criterion.after_step()
    assert torch.equal(ours.score(weights[0]), wanda.score(weights[0]))
