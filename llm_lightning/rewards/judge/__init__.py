"""A language model as a reward (RLAIF): what it is asked, what it may cost, and how far it can be trusted."""

from llm_lightning.rewards.judge.agreement import Agreement
from llm_lightning.rewards.judge.budget import Budget
from llm_lightning.rewards.judge.engine import JudgeEngine, VerdictRequest
from llm_lightning.rewards.judge.judge import Judge
from llm_lightning.rewards.judge.rubric import Rubric

__all__ = ["Agreement", "Budget", "Judge", "JudgeEngine", "Rubric", "VerdictRequest"]
