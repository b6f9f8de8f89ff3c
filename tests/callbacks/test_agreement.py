"""Ranks agree on the largest of their numbers, one call later, and none waits for another one's call."""

import json

from callbacks.stopping.agreement import Agreement
from tests.callbacks.tiny_llama import tiny_trainer
from tests.callbacks.tiny_run import agree, exit_codes, free_port


def test_two_ranks_hear_the_largest_number_at_the_same_later_call(processes, tmp_path):
    port = free_port()
    numbers = [[0, 0, 5, 1], [0, 2, 0, 3]]
    ranks = [processes.Process(target=agree, args=(tmp_path, rank, port, numbers[rank])) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    assert exit_codes(ranks) == [0, 0]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"answers-{rank}.json").read_text()) == [0, 0, 2, 5, 3, 0]


def test_one_rank_is_answered_at_once(tmp_path):
    agreement = Agreement(tiny_trainer(tmp_path))
    assert [agreement.ask(number) for number in (0, 7, 0)] == [0, 7, 0]
    assert agreement.settle() == 0
