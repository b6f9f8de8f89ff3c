"""The way of the records through the filters."""

from collections.abc import Iterator

import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.synthetic import funnel as funnel_module
from datamodules.synthetic.filters import ExactDuplicates, Filter, Format, Length, Scores, Threshold
from datamodules.synthetic.funnel import run_filters
from tests.datamodules.synthetic.records import answers, context, funnel_of, ids


class Number(Filter):
    """The number that an answer is; NaN where it is none."""

    name = "number"

    def __init__(self, threshold: Threshold, needs_all: bool = False) -> None:
        super().__init__(threshold)
        self.needs_all = needs_all
        self.seen: list[str] = []

    def scores(self, batches, context) -> Iterator[Scores]:
        values = []
        for batch in batches:
            self.seen += ids(batch)
            values.append(np.array([float(each.answer) for each in batch], np.float32))
            if not self.needs_all:
                yield Scores(values.pop())
        if self.needs_all:
            yield Scores(np.concatenate(values))


NUMBERS = answers(*map(str, range(10)), "nan")


@pytest.mark.parametrize("needs_all", [False, True])
@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (Threshold(min=3), "3456789"),
        (Threshold(max=3), "0123"),
        (Threshold(min=2, max=2), "2"),
        (Threshold(0.25, 0.75, "quantile"), "234567"),
        (Threshold(min=0.5, by="quantile"), "56789"),
        (Threshold(max=0.9, by="quantile"), "012345678"),
        (Threshold(min=1, by="quantile"), "9"),
        (Threshold(), "0123456789"),
    ],
)
def test_what_lies_within_the_threshold_stays(tmp_path, monkeypatch, needs_all, threshold, kept):
    monkeypatch.setattr(funnel_module, "BATCH", 3)
    funnel = funnel_of(tmp_path, [Number(threshold, needs_all)], NUMBERS)
    assert "".join(ids(funnel.kept())) == kept
    assert funnel.num_kept == funnel.stages[0].num_kept == len(kept)
    assert all(each.scores["number"] == float(each.answer) for each in funnel.kept())


def test_each_filter_sees_what_those_before_it_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(funnel_module, "BATCH", 2)
    first, late, last = Number(Threshold(min=2)), Number(Threshold(max=0.75, by="quantile")), Number(Threshold(max=6))
    records = [each for each in NUMBERS if each.answer != "nan"]
    funnel = funnel_of(tmp_path, [first, late, last], records)
    assert "".join(first.seen) == "0123456789"
    assert "".join(late.seen) == "23456789"
    assert "".join(last.seen) == "234567"  # the highest two of eight are gone
    assert "".join(ids(funnel.kept())) == "23456"
    assert [stage.name for stage in funnel.stages] == ["number", "number_2", "number_3"]
    assert set(next(funnel.kept()).scores) == {"number", "number_2", "number_3"}
    assert [(stage.num_in, stage.num_kept) for stage in funnel.stages] == [(10, 8), (8, 6), (6, 5)]


def test_records_are_read_once_for_the_filters_that_decide_at_once(tmp_path):
    passes = []

    def read():
        passes.append(True)
        return iter(NUMBERS)

    run_filters([Number(Threshold(min=1)), Number(Threshold(max=8)), Number(Threshold())], read, context(tmp_path))
    assert len(passes) == 2  # the filters', and that of the examples


def test_dropped_records_are_shown_with_their_reasons(tmp_path):
    funnel = funnel_of(tmp_path, [Number(Threshold(min=3, max=5))], NUMBERS)
    stage = funnel.stages[0]
    assert stage.dropped == {"too high": 4, "too low": 3, "no score": 1}
    assert {(each.reason, each.candidate.answer) for each in stage.examples} >= {("no score", "nan")}
    assert {each.reason for each in stage.examples} == set(stage.dropped)
    assert all(each.score == float(each.candidate.answer) for each in stage.examples if each.reason != "no score")


def test_the_table_shows_where_all_was_lost(tmp_path):
    records = answers("As an AI language model, I cannot.", "", "fine", "Fine!")
    funnel = funnel_of(tmp_path, [Format(), ExactDuplicates(), Length(Threshold(min=5))], records)
    assert funnel.num_kept == 0 and not list(funnel.kept())
    assert [line.split() for line in funnel.table().splitlines()[1:]] == [
        ["format", "4", "->", "2", "1", "refusal,", "1", "empty", "answer"],
        ["exact_duplicates", "2", "->", "2"],  # their prompts differ
        ["answer_words", "2", "->", "0", "2", "too", "short"],
    ]


@pytest.mark.parametrize("filters", [[], [Format(), Number(Threshold(0.1, by="quantile"))]])
def test_no_records(tmp_path, filters):
    funnel = funnel_of(tmp_path, filters, [])
    assert funnel.num_in == funnel.num_kept == 0 and not list(funnel.kept())


def test_no_filters(tmp_path):
    funnel = funnel_of(tmp_path, [], NUMBERS)
    assert ids(funnel.kept()) == ids(NUMBERS)
    assert "11 passed" in funnel.table()


def test_the_scores_of_generators_stay(tmp_path):
    record = answers("7")[0]
    record.scores["votes"] = 0.5
    assert next(funnel_of(tmp_path, [Number(Threshold())], [record]).kept()).scores == {"votes": 0.5, "number": 7.0}
    assert record.scores == {"votes": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"min": 2, "max": 1}, "min 2 is above its max 1"), ({"max": 95, "by": "quantile"}, "from 0 to 1, not 95")],
)
def test_thresholds_that_make_no_sense(settings, message):
    with pytest.raises(DataError, match=message):
        Threshold(**settings)
