"""Which sample is taken, and what answers are read as the same."""

import itertools

import pytest

from llm_lightning.errors import UserError
from llm_lightning.inference import AnswerPattern, BestOfN, FinalNumber, FirstSample, MajorityVote, Option

TEXTS = ["It is 7.", "So: 8", "#### 7.0", "I do not know", "8 it is", "\\boxed{7}"]


def test_the_first_and_the_best():
    rewards = [0.1, 0.7, 0.2, 0.7, -1.0, 0.0]
    assert FirstSample().choose(TEXTS, rewards) == 0
    assert BestOfN().choose(TEXTS, rewards) == 1


def test_a_vote_counts_equal_answers():
    vote = MajorityVote(FinalNumber())
    assert vote.choose(TEXTS, [0.0] * 6) == 0
    assert vote.choose(TEXTS, [0.0, 0.0, 0.3, 0.9, 0.0, 0.2]) == 2  # the most rewarded of those that say 7
    assert vote.choose(TEXTS[1:2] + TEXTS[3:5], [0.0] * 3) == 0
    assert vote.choose(["no", "none"], [0.0, 1.0]) == 0
    assert not vote.needs_rewards and not FirstSample().needs_rewards and BestOfN().needs_rewards


def test_of_equal_votes_the_first_wins():
    for order in itertools.permutations(["7", "8", "9"]):
        assert MajorityVote(FinalNumber()).choose(order, [0.0] * 3) == 0


def test_votes_with_weights():
    texts, rewards = ["7", "8", "7", "8", "9"], [0.2, 0.9, 0.3, 0.1, 0.6]
    assert MajorityVote(FinalNumber(), "rewards").choose(texts, rewards) == 1  # 1.0 for 8, 0.6 for 9, 0.5 for 7
    logits = [-3.0, 2.0, 1.0, -4.0, 1.5]
    assert MajorityVote(FinalNumber(), "odds").choose(texts, logits) == 1
    assert MajorityVote(FinalNumber(), "odds").choose(["7", "7", "8"], [1000.0, 1000.0, 1001.0]) == 2
    assert MajorityVote(FinalNumber(), "odds").needs_rewards
    with pytest.raises(UserError, match="a sample has the reward -4, and a vote cannot count less than nothing"):
        MajorityVote(FinalNumber(), "rewards").choose(texts, logits)
    with pytest.raises(UserError, match=r"MajorityVote\.weights='logits': give none, rewards or odds"):
        MajorityVote(FinalNumber(), "logits")


def test_readers():
    assert FinalNumber()("about $1,000.50") == FinalNumber()("1000.5")
    assert FinalNumber()("nothing") is None
    assert Option()("The answer is (B).") == Option()("B. dog") == "B"
    pattern = AnswerPattern(r"answer is (\w+)")
    assert pattern("The answer is Paris. No, the ANSWER IS Rome") == "rome"
    assert pattern("Paris") is None
    assert AnswerPattern("yes|no")("No, yes ") == "yes"
    with pytest.raises(UserError, match=r"AnswerPattern.pattern='\(' is no regular expression"):
        AnswerPattern("(")
