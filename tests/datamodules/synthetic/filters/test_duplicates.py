"""Exact and near duplicates, and the nearest of many references."""

import random

import numpy as np
import pytest

from datamodules.records.words import Coder
from datamodules.storage.near_duplicates import pieces
from datamodules.storage.similarity import NUM_BANDS, ROWS
from datamodules.synthetic.filters import ExactDuplicates, NearDuplicates, Threshold
from datamodules.synthetic.filters.nearest import Nearest
from tests.datamodules.synthetic.records import answers, candidates, funnel_of, ids, needs_extra

pytestmark = needs_extra

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("st", "rn", "ll", "x")]


def texts(count: int, length: int = 40) -> list[str]:
    g = random.Random(0)
    return [" ".join(g.choices(WORDS, k=length)) for _ in range(count)]


def edited(text: str, changes: int, g: random.Random) -> str:
    words = text.split()
    for place in g.sample(range(len(words)), changes):
        words[place] = g.choice(WORDS)
    return " ".join(words)


def test_the_first_of_equal_records_stays(tmp_path):
    pairs = [("Why?", "So."), ("why", "So!"), ("Why?", "No."), ("2 + 2", "4"), ("2 * 2", "4"), ("?", "!"), ("!", "?")]
    funnel = funnel_of(tmp_path, [ExactDuplicates()], candidates(*pairs))
    # "2 + 2" and "2 * 2" say the same to a filter that ignores signs, which is why there is something else for sums.
    assert ids(funnel.kept()) == ["0", "2", "3", "5", "6"]


def test_a_score_is_the_jaccard_similarity(tmp_path):
    g = random.Random(1)
    first = texts(200)
    records = [each for text in first for each in (text, edited(text, g.randrange(1, 20), g))]
    scores = funnel_of(tmp_path, [NearDuplicates()], answers(*records)).stages[0].scores[1::2]
    sets = [set(pieces(each.text).tolist()) for each in answers(*records)]
    truth = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
    similar = truth > 0.6
    assert 50 < similar.sum() < 150
    expected = 1 - (1 - truth[similar] ** ROWS) ** NUM_BANDS
    assert abs((scores[similar] > 0).mean() - expected.mean()) < 0.04 and expected.mean() > 0.95
    error = (scores - truth)[similar & (scores > 0)]
    assert np.abs(error).mean() < 0.04 and np.abs(error).max() < 0.16 and abs(error.mean()) < 0.02


def test_records_that_resemble_an_earlier_one_are_dropped(tmp_path):
    first = texts(60)
    near = [edited(text, 1, random.Random(2)) for text in first[:20]]
    funnel = funnel_of(tmp_path, [NearDuplicates()], answers(*first, *near))
    assert ids(funnel.kept()) == [str(i) for i in range(60)]
    assert funnel.stages[0].dropped == {"resembles an earlier one": 20}


def test_a_quantile_of_similarity(tmp_path):
    first = texts(80)
    near = [edited(text, 1 + i % 3, random.Random(i)) for i, text in enumerate(first[:20])]
    funnel = funnel_of(tmp_path, [NearDuplicates(Threshold(max=0.9, by="quantile"))], answers(*first, *near))
    assert funnel.num_kept == 90


def test_it_does_not_depend_on_batches(tmp_path, monkeypatch):
    records = answers(*texts(50), *(edited(text, 2, random.Random(3)) for text in texts(50)))
    whole = funnel_of(tmp_path, [NearDuplicates()], records).stages[0].scores
    monkeypatch.setattr("datamodules.synthetic.funnel.BATCH", 7)
    assert (funnel_of(tmp_path, [NearDuplicates()], records).stages[0].scores == whole).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "a", "¿?", "日本語"])
def test_short_texts(tmp_path, text):
    assert funnel_of(tmp_path, [NearDuplicates()], candidates((text, text))).num_kept == 1


def lcs(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], previous + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def test_rouge_l_with_the_nearest_reference():
    g = random.Random(4)
    references = texts(300, 25)
    coder = Coder()
    nearest = Nearest([coder.learn(text) for text in references])
    for text in references[:40]:
        words = edited(text, g.randrange(8), g).split() + ["unheard"] * g.randrange(3)
        expected = max(2 * lcs(words, r.split()) / (len(words) + len(r.split())) for r in references)
        assert nearest.rouge_l(coder.code(" ".join(words))) == pytest.approx(expected)


def test_words_of_all_scripts():
    coder = Coder()
    nearest = Nearest([coder.learn("¿Dónde está la biblioteca?"), coder.learn("図書館はどこですか")])
    assert nearest.rouge_l(coder.code("dónde está LA biblioteca")) == 1
    assert nearest.rouge_l(coder.code("図書館はどこですか。")) == 1
    assert nearest.rouge_l(coder.code("図書館はここです")) == pytest.approx(2 * 7 / 17)
    assert nearest.rouge_l(coder.code("")) == nearest.rouge_l(coder.code("nothing of it")) == 0


def test_more_words_than_there_are_characters_below_the_surrogates():
    coder = Coder()
    text = coder.learn(" ".join(f"w{i}" for i in range(0xD900)))
    assert len(set(text)) == 0xD900 and text.encode("utf-8")
