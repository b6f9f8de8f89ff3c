"""Which solved examples stand before a question."""

import math
from collections import Counter

import pytest

from datamodules.synthetic.seeds import Seed
from llm_lightning.errors import UserError
from llm_lightning.inference.examples import ChosenExamples, Examples

QUESTIONS = [
    "How many apples has Ann if she buys 3 apples?",
    "How far does a train go in 2 hours?",
    "How many pears has Ben if he eats 2 pears?",
    "What is the area of a square?",
    "How fast is the train if the train needs 3 hours?",
    "How many apples fall from the tree?",
]


def seed(question, answer="4"):
    answers = [{"role": "assistant", "content": answer}] if answer else []
    return Seed(question, [{"role": "user", "content": question}, *answers])


def chosen(question, **settings):
    examples = ChosenExamples(Examples("examples.jsonl", **settings), [seed(each) for each in QUESTIONS], seed=3)
    turns = examples.turns(seed(question, ""))
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    return [turn["content"] for turn in turns[::2]]


def cosine(one, other):
    """By the definition of TF-IDF, word for word."""
    counts = [Counter(text.lower().replace("?", "").split()) for text in (one, other)]
    texts = [text.lower().replace("?", "").split() for text in QUESTIONS]

    def rareness(word):
        number = sum(word in text for text in texts)
        return math.log(1 + len(texts) / number) if number else 0.0

    weights = [{word: n * rareness(word) for word, n in count.items()} for count in counts]
    product = sum(value * weights[1].get(word, 0.0) for word, value in weights[0].items())
    return product / math.sqrt(sum(value**2 for value in weights[1].values()))


def test_similar_ones_are_those_of_the_highest_cosine_and_the_best_is_last():
    question = "How many apples has the train?"
    ranked = sorted(QUESTIONS, key=lambda each: cosine(question, each))
    assert chosen(question, count=3) == ranked[-3:]


def test_a_question_is_no_example_of_itself():
    for choice in ("similar", "random"):
        found = chosen(" how FAR does a train go in 2 hours?", count=5, choice=choice)
        assert sorted(found) == sorted(set(QUESTIONS) - {QUESTIONS[1]})


def test_random_ones_differ_from_prompt_to_prompt_and_stay_the_same():
    each = [tuple(chosen(f"Question {number}?", count=2, choice="random")) for number in range(12)]
    assert len(set(each)) > 6
    assert each == [tuple(chosen(f"Question {number}?", count=2, choice="random")) for number in range(12)]


def test_too_few_are_refused():
    with pytest.raises(UserError, match=r"--examples\.count 0 must be at least 1"):
        Examples("e", count=0).check()
    with pytest.raises(UserError, match=r"it has 6 records, and more than --examples\.count 6 are needed"):
        chosen("?", count=6)
