import pytest
import torch

from benchmarks.tally import IGNORE, Tally, count


# Two records of 3 and 4 tokens; the first two tokens of each are the question.
def padded():
    labels = torch.tensor([[IGNORE, IGNORE, 7, IGNORE], [IGNORE, IGNORE, 8, 9]])
    return {"labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}


def packed(num_padding):
    padding = [IGNORE] * num_padding
    labels = torch.tensor([[IGNORE, IGNORE, 7, IGNORE, IGNORE, 8, 9, *padding]])
    return {"labels": labels, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, *range(num_padding)]])}


@pytest.mark.parametrize("batch", [padded(), packed(0), packed(3)], ids=["padded", "flat", "packed"])
def test_the_same_records_count_the_same_in_every_layout(batch):
    assert count(batch).tolist() == [3, 7, 2]


def test_a_row_that_is_trained_on_from_its_first_token_has_no_target_there():
    assert count({"labels": torch.tensor([[5, 6, 7]])}).tolist() == [2, 3, 1]


def test_loss_is_the_mean_over_timed_tokens_and_not_over_steps():
    tally = Tally()
    tally.add(padded(), torch.tensor(9.0), timed=False)
    tally.add(padded(), torch.tensor(2.0), timed=True)
    tally.add({"labels": torch.tensor([[IGNORE, 6]])}, torch.tensor(6.0), timed=True)
    figures = tally.as_dict()
    assert figures["loss"] == pytest.approx((3 * 2.0 + 1 * 6.0) / 4)
    assert (figures["trained"], figures["tokens"], figures["records"]) == (4, 9, 3)
    assert (figures["trained_in_all"], figures["records_in_all"]) == (7, 5)


def test_a_pass_without_a_timed_step_is_an_error():
    with pytest.raises(RuntimeError, match="no step"):
        Tally().as_dict()
