"""More from a model that is as it is: many samples of each answer, and what is chosen among them."""

from llm_lightning.inference.choices import BestOfN, Choice, FirstSample, MajorityVote
from llm_lightning.inference.readers import AnswerPattern, AnswerReader, FinalNumber, Option

__all__ = [
    "AnswerPattern",
    "AnswerReader",
    "BestOfN",
    "Choice",
    "FinalNumber",
    "FirstSample",
    "MajorityVote",
    "Option",
]
