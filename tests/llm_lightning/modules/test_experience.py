import numpy as np
import pytest
import torch

from llm_lightning.modules.ppo.experience import Experience, minibatches
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.rollouts import Completion


def experience(lengths):
    prompts = [torch.arange(3)] * len(lengths)
    completions = [Completion(torch.arange(n), torch.full((n,), -float(n)), n % 2 == 0) for n in lengths]
    return Experience(prompts, completions, torch.zeros(len(lengths)))


def test_what_is_put_is_taken_in_the_order_of_the_packed_tokens():
    e = experience([2, 4, 1])
    rows = [2, 1]
    flat = torch.arange(5.0) + 1
    e.put(rows, values=flat)
    assert e.values.tolist() == [[0, 0, 0, 0], [2, 3, 4, 5], [1, 0, 0, 0]]
    assert e.take(rows, "values")[0].tolist() == flat.tolist()
    assert e.packed(rows).targets.tolist() == [0, 0, 1, 2, 3]
    assert e.sampler_logprobs[1].tolist() == [-4.0] * 4
    assert e.is_finished.tolist() == [True, True, False]
    assert e.groups([0, 1, 2], 12) == [[0, 1], [2]]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_minibatches_are_the_same_rows_for_any_number_of_ranks(num_ranks):
    whole = minibatches(16, 4, 0, 1, np.random.default_rng(7))
    count = 16 // num_ranks
    together = [[] for _ in range(4)]
    for rank in range(num_ranks):
        for number, rows in enumerate(minibatches(count, 4, rank, num_ranks, np.random.default_rng(7))):
            assert len(rows) == count // 4
            together[number] += [rank * count + row for row in rows]
    assert together == whole
    assert sorted(row for rows in whole for row in rows) == list(range(16))
    assert whole != minibatches(16, 4, 0, 1, np.random.default_rng(8))


def test_averages_are_over_values_and_not_over_batches():
    averages = Averages(torch.device("cpu"))
    averages.add("a", torch.tensor([1.0, 2.0, 3.0]))
    averages.add("a", torch.tensor([[10.0]]))
    averages.add("b", torch.tensor([True, False]))
    averages.add("none", torch.zeros(0))
    assert averages.means(lambda x: 2 * x) == {"a": 4.0, "b": 0.5}
