import itertools
import math

import pytest

from callbacks import CallbackError
from callbacks.pruning import NM, Constant, Cubic, Linear, OneShot, Pruning, Regrow, SparseGPT, Structured, Unstructured


def test_cubic_is_the_formula_of_the_paper():
    plan = Cubic(begin=10, end=50, interval=1).resolve(100)
    for step in range(101):
        progress = min(max((step - 10) / 40, 0), 1)
        assert plan.fraction(step) == pytest.approx(1 - (1 - progress) ** 3)


def test_linear_and_constant():
    plan = Linear(begin=10, end=30).resolve(100)
    assert [plan.fraction(step) for step in (9, 10, 15, 30, 99)] == [0, 0, 0.25, 1, 1]
    plan = Constant(begin=10).resolve(100)
    assert [plan.fraction(step) for step in (9, 10, 99)] == [0, 1, 1]
    assert OneShot(end=10).holds_weights and not Constant().holds_weights


def test_fewer_weights_are_exchanged_each_time():
    plan = Regrow(end=0.75, interval=100, share=0.3).resolve(1000)
    due = [step for step in range(1, 1001) if plan.is_due(step - 1, step)]
    assert due == [1, 101, 201, 301, 401, 501, 601, 701, 750] and all(plan.fraction(step) == 1 for step in due)
    for step in due[1:]:
        assert plan.exchanged(step) == pytest.approx(0.15 * (1 + math.cos(math.pi * (step - 1) / 749)))
    assert plan.exchanged(1) == plan.exchanged(750) == 0


def test_shares_are_of_the_run():
    plan = Cubic(begin=0.1, end=0.7, interval=0.05).resolve(200)
    assert (plan.begin, plan.end, plan.interval) == (20, 140, 10)


def test_the_masks_change_every_interval_and_at_the_end_and_never_again():
    plan = Linear(begin=5, end=18, interval=4).resolve(30)
    assert [step for step in range(1, 31) if plan.is_due(step - 1, step)] == [5, 9, 13, 17, 18]
    # In tokens a step jumps over several units.
    plan = Linear(begin=1000, end=5000, interval=1000, unit="tokens").resolve(float("inf"))
    moments = [0, 700, 1400, 2100, 2800, 3500, 4200, 4900, 5600, 6300]
    due = [b for a, b in itertools.pairwise(moments) if plan.is_due(a, b)]
    assert due == [1400, 2100, 3500, 4200, 5600]
    for end, due, shares in ((3, [1, 2, 3], [1 / 3, 2 / 3, 1]), (19, [*range(2, 19, 2), 19], [2 / 19, 4 / 19, 6 / 19])):
        plan = OneShot(end=end).resolve(30)
        assert [step for step in range(1, 31) if plan.is_due(step - 1, step)] == due
        assert [plan.fraction(step) for step in due[:3]] == pytest.approx(shares)
    assert OneShot(end=0.01).resolve(20).end == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cubic(begin=0.8, end=0.5), ["Cubic", "begin=0.8", "after end=0.5"]),
        (lambda: Cubic(begin=300, end=0.9).resolve(100), ["begin=300", "after end=90"]),
        (lambda: Linear(begin=3, end=500).resolve(100), ["Linear", "end=500", "last step, 100"]),
        (lambda: Cubic().resolve(float("inf")), ["begin=0.1", "without end"]),
        (lambda: Cubic(unit="tokens"), ["unit=tokens", "not shares"]),
        (lambda: Cubic(interval=0), ["interval=0"]),
        (lambda: Unstructured(sparsity=1.0), ["sparsity=1.0", "below 1"]),
        (lambda: Unstructured(sparsity=0), ["sparsity=0"]),
        (lambda: Unstructured(0.5, "network", "sensitivity"), ["sensitivity", "exclude"]),
        (lambda: Unstructured(0.9, layers="sensitivity"), ["0.84"]),
        (lambda: NM(4, 4), ["n=4", "m=4"]),
        (lambda: Structured(), ["nothing to remove"]),
        (lambda: Structured(channels=1.0), ["channels=1.0"]),
        (lambda: Pruning(NM(), max_loss_increase=-0.1), ["max_loss_increase=-0.1"]),
        (
            lambda: Pruning(NM(), schedule=OneShot(), max_loss_increase=0.1),
            ["max_loss_increase=0.1", "OneShot", "Cubic"],
        ),
        (lambda: OneShot(end=0), ["end=0"]),
        (lambda: Regrow(share=1.0), ["Regrow.share=1.0"]),
        (lambda: Pruning(NM(), schedule=Regrow()), ["Regrow", "take structure Unstructured"]),
        (lambda: Pruning(Unstructured(0.5), schedule=Regrow(), max_loss_increase=0.1), ["leave max_loss_increase out"]),
        (lambda: Pruning(Unstructured(0.5), SparseGPT(), Regrow()), ["schedule=Regrow", "OneShot"]),
        (lambda: Pruning(NM(), num_batches=-1), ["num_batches=-1"]),
    ],
)
def test_settings_that_cannot_work_are_named(make, words):
    with pytest.raises(CallbackError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value
