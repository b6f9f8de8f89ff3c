"""Several rewards as one: what is trained on, what is logged, and who is to blame."""

import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.modules.ppo.checks import check_rewards
from llm_lightning.rewards import (
    FinalAnswer,
    Length,
    RecordCheck,
    Reward,
    RewardEnsemble,
    RewardError,
    RewardModel,
    Scores,
    score,
)


def constant(*values):
    return lambda prompts, completions, columns: list(values[: len(completions)])


def asked(function, texts=("a", "b")):
    return score({"liked": Reward(function)}, ["?"] * len(texts), list(texts), {})


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 2.0])
def test_it_is_the_mean_less_the_deviation(k):
    given = torch.tensor([[1.0, -2.0], [4.0, 1.0], [0.5, 7.25]], dtype=torch.float64)
    scores = asked(RewardEnsemble([constant(*row) for row in given.tolist()], k))
    mean, std = given.mean(0), given.std(0, correction=0)
    assert torch.tensor(scores["liked"]) == pytest.approx(mean - k * std, abs=1e-6)
    assert scores["liked/mean"] == pytest.approx(mean.tolist())
    assert scores["liked/std"] == pytest.approx(std.tolist())
    assert scores["liked/min"] == given.amin(0).tolist()


def test_members_that_agree_are_one_of_them_and_of_two_the_worse_counts():
    same = asked(RewardEnsemble([constant(0.3, -4.0)] * 3, 5.0))
    assert same["liked"] == pytest.approx([0.3, -4.0]) and same["liked/std"] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert asked(RewardEnsemble([constant(1.0, 5.0), constant(2.0, 3.0)]))["liked"] == pytest.approx([1.0, 3.0])


def test_a_rank_without_completions_knows_the_same_names():
    ensemble = RewardEnsemble([constant(1.0), constant(2.0)])
    assert list(asked(ensemble, ())) == list(asked(ensemble, ("a",)))


def test_an_ensemble_of_ensembles():
    inner = RewardEnsemble([constant(1.0), constant(3.0)])
    assert asked(RewardEnsemble([inner, constant(2.0)], 0.0), ("a",))["liked"] == [1.5]


def test_a_member_that_fails_is_named():
    def fails(prompts, completions, columns):
        return [1 / (completion != "b") for completion in completions]

    with pytest.raises(RewardError, match=r"'member 1' raised ZeroDivisionError: .* for the completion 'b'"):
        asked(RewardEnsemble([constant(1.0, 2.0), fails]))
    with pytest.raises(RewardError, match="'member 0' returned nan"):
        asked(RewardEnsemble([constant(float("nan"), 0.0), constant(1.0, 2.0)]))


def test_parts_that_were_not_named_are_refused():
    def function(prompts, completions, columns):
        return Scores([0.0] * len(completions), {"other": [0.0] * len(completions)})

    with pytest.raises(RewardError, match=r"has the parts \[\], and returned \['other'\]"):
        asked(function)


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        (RewardEnsemble([constant(1.0)]), r"RewardEnsemble.members names 1 reward\(s\)"),
        (RewardEnsemble([constant(1.0)] * 2, -1.0), r"RewardEnsemble.k=-1.0 must be at least 0"),
        (RewardEnsemble([constant(1.0)] * 2, float("nan")), r"RewardEnsemble.k=nan must be at least 0"),
        (RewardEnsemble([constant(1.0), RewardModel("missing/folder")]), "RewardModel.path='missing/folder'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(ensemble, message):
    with pytest.raises(UserError, match=message):
        check_rewards({"liked": Reward(ensemble)})


def test_what_holds_for_a_reward_model_holds_in_an_ensemble():
    rewards = {"liked": Reward(RewardEnsemble([RewardModel("a"), RewardModel("b")]), keep_special_tokens=True)}
    with pytest.raises(UserError, match=r"model\.rewards\.liked\.keep_special_tokens"):
        check_rewards(rewards)


def test_members_look_at_the_records():
    def check(column):
        return RecordCheck({"liked": Reward(RewardEnsemble([Length(target=3), FinalAnswer(column=column)]))})

    assert "answer" in check("answer")({"answer": "no number"})
    assert check("answer")({"answer": "12"}) is None
    assert check("answer").key != check("other").key
