"""Rewards: what makes a completion good. Any callable over texts; none of them knows Lightning."""

from llm_lightning.rewards.ensemble import RewardEnsemble
from llm_lightning.rewards.instructions import InstructionsFollowed
from llm_lightning.rewards.judge import Agreement, Budget, Judge, JudgeEngine, Rubric, VerdictRequest
from llm_lightning.rewards.math_answer import MathAnswer
from llm_lightning.rewards.reward_model import RewardModel
from llm_lightning.rewards.right_option import RightOption
from llm_lightning.rewards.rules import FinalAnswer, Length, Pattern
from llm_lightning.rewards.scoring import (
    RecordCheck,
    Reward,
    RewardError,
    RewardFunction,
    Scores,
    check_function,
    prepare_rewards,
    score,
    with_members,
)

__all__ = [
    "Agreement",
    "Budget",
    "FinalAnswer",
    "InstructionsFollowed",
    "Judge",
    "JudgeEngine",
    "Length",
    "MathAnswer",
    "Pattern",
    "RecordCheck",
    "Reward",
    "RewardEnsemble",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "RightOption",
    "Rubric",
    "Scores",
    "VerdictRequest",
    "check_function",
    "prepare_rewards",
    "score",
    "with_members",
]
