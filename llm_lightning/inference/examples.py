"""Solved examples before a question: few-shot prompting."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from datamodules.cache import key_of
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.seeds import Seed
from llm_lightning.errors import UserError


@dataclass(frozen=True)
class Examples:
    """Which examples stand before each prompt, as turns of the conversation.

    Args:
        path: of conversations, in the shapes that fine-tuning reads. An answer that is worked out step by step is a
            chain of thought to follow.
        count: examples before each prompt.
        choice: `similar`: those whose questions share the rarest words with the prompt's (TF-IDF), the most similar one
            last. `random`: others for each prompt, the same ones in each run.
    """

    path: str
    count: int = 4
    choice: Literal["similar", "random"] = "similar"

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if self.count < 1:
            raise UserError(f"--examples.count {self.count} must be at least 1.")


class ChosenExamples:
    """Finds the examples of a prompt; a question that is the prompt's own is never among them.

    Args:
        examples: how they are chosen.
        solved: what they are chosen from; held in memory.
        seed: of random choices.

    Raises:
        UserError: there are too few.
    """

    def __init__(self, examples: Examples, solved: Sequence[Seed], seed: int = 0) -> None:
        self.examples, self.solved, self.seed = examples, solved, seed
        if len(solved) <= examples.count:
            raise UserError(
                f"--examples.path {examples.path}: it has {len(solved)} records, and more than --examples.count "
                f"{examples.count} are needed, since a prompt is no example of itself."
            )
        self._questions = [_normalized(one.question) for one in solved]

    @property
    def key(self) -> str:
        """Names what stands before prompts."""
        return key_of(vars(self.examples), self.seed, [one.messages for one in self.solved])

    def turns(self, prompt: Seed) -> list[Message]:
        """Questions and answers."""
        own = _normalized(prompt.question)
        others = np.array([question != own for question in self._questions])
        count = min(self.examples.count, int(others.sum()))
        if self.examples.choice == "random":
            generator = random.Random(key_of(self.seed, prompt.messages))
            chosen = generator.sample(np.flatnonzero(others).tolist(), count)
        else:
            scores = np.where(others, self._similarities(own), -1.0)
            chosen = np.argsort(-scores, kind="stable")[:count][::-1].tolist()
        return [turn for place in chosen for turn in self.solved[place].messages if turn["role"] != "system"]

    def _similarities(self, question: str) -> np.ndarray:
        """(n,) cosines of the weighted words of a question with those of the examples."""
        scores = np.zeros(len(self.solved))
        for word, times in Counter(_words(question)).items():
            if word in self._index:
                places, weights, rareness = self._index[word]
                scores[places] += times * rareness * weights
        return scores

    @cached_property
    def _index(self) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
        """Of each word the examples that have it, its weight in each, and how rare it is."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, question in enumerate(self._questions):
            for word, times in Counter(_words(question)).items():
                found[word].append((place, times))
        rareness = {word: float(np.log(1 + len(self.solved) / len(places))) for word, places in found.items()}
        squares = np.zeros(len(self.solved))
        for word, pairs in found.items():
            for place, times in pairs:
                squares[place] += (times * rareness[word]) ** 2
        lengths = np.sqrt(np.maximum(squares, 1e-12))
        index = {}
        for word, pairs in found.items():
            places, times = np.array(pairs).T
            index[word] = (places, times * rareness[word] / lengths[places], rareness[word])
        return index


def _normalized(question: str) -> str:
    return " ".join(question.casefold().split())


def _words(question: str) -> list[str]:
    return re.findall(r"\w+", question)
