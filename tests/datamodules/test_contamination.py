"""Items of evaluations in training data, against all runs of 13 words compared by hand."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule, TextDataModule
from datamodules.records.contamination import RUN, ItemRuns, TrainingTexts
from datamodules.records.words import WORD, words_of
from datamodules.sources.discover import Source

SHARED = Path(__file__).parents[3] / "shared" / "data"


def runs_of(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def by_hand(items: list[list[str]], texts: list[str]) -> set[int]:
    there = set().union(*map(runs_of, texts))
    return {number for number, item in enumerate(items) if any(runs_of(text) & there for text in item)}


def sentence(g: random.Random, count: int) -> str:
    return " ".join(g.choice("abcdefghij") for _ in range(count))


@pytest.mark.parametrize("length", [RUN - 1, RUN, RUN + 1])
def test_a_run_of_13_words_is_found_wherever_it_stands_and_a_shorter_one_nowhere(length):
    words = [f"w{number}" for number in range(30)]
    item = " ".join(words)
    for before in range(16):
        for start in (0, 3, 30 - length):
            text = " ".join([*(["zzz", "w5"] * 8)[:before], *words[start : start + length], "zzz"])
            assert by_hand([[item]], [text]) == (set() if length < RUN else {0})
            assert ItemRuns([[item]]).found_in([text]) == by_hand([[item]], [text]), (before, start)


def test_it_finds_what_a_comparison_of_all_runs_finds():
    g = random.Random(1)
    items = [[sentence(g, g.randint(5, 60)), sentence(g, 20)] for _ in range(60)]
    texts = [sentence(g, 300) for _ in range(20)]
    for number in range(0, 60, 4):
        words = items[number][0].split()
        texts.append(f"{sentence(g, 9)} Unknown, {'; '.join(words[: g.randint(10, 22)]).upper()} and so on")
    expected = by_hand(items, texts)
    assert 3 < len(expected) < 15
    assert ItemRuns(items).found_in(texts) == expected
    # A run does not go on from one text to the next.
    assert ItemRuns([["a b c d e f g h i j k l m"]]).found_in(["a b c d e f g", "h i j k l m"]) == set()


def test_words_are_those_of_the_pattern_in_any_script():
    text = "Ärger\tim_Büro:\n“it\u2019s”—IT'S! 図書館 x²\r\nΣΩΣ\n\u2028ЖЯЖ 3.14\x1cend"
    assert words_of(text) == WORD.findall(text.lower())


def test_whatever_shape_the_records_have_all_their_texts_are_looked_at(tmp_path):
    planted = [" ".join(f"w{kind}x{number}" for number in range(14)) for kind in range(6)]
    items = [[text] for text in planted]
    (tmp_path / "a.txt").write_text(f"Once upon a time. {planted[0]}.\n")
    talk = {"messages": [{"role": "user", "content": f"Say {planted[1]}"}], "n": 3}
    (tmp_path / "b.jsonl").write_text(json.dumps(talk) + '\n{"torn": \n' + json.dumps({"a": [{"b": planted[2]}]}))
    parquet.write_table(pa.table({"chosen": [None, planted[3]], "score": [1.0, 2.0]}), tmp_path / "c.parquet")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({planted[5]: planted[4]}))
    texts = TrainingTexts([Source(str(tmp_path))], tmp_path / "cache")
    # The last one is but a column's name, and the very last has no 13 words.
    assert texts.contaminated([*items, ["too short"]]) == [True] * 5 + [False, None]
    assert (
        TrainingTexts([Source(str(tmp_path / "a.txt"))], tmp_path / "cache").contaminated(items) == [True] + [False] * 5
    )


def test_ranks_share_the_files_and_nothing_is_read_twice(tmp_path, monkeypatch):
    g = random.Random(2)
    items = [[sentence(g, 20)] for _ in range(4)]
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(items[number][0])
    source, root = Source(str(tmp_path)), tmp_path / "cache"
    shares = [TrainingTexts([source], root).contaminated(items, rank, 2) for rank in range(2)]
    assert shares == [[True, False, True, False], [False, True, False, False]]
    monkeypatch.setattr("datamodules.records.contamination.records", None)  # whoever reads a record fails
    assert TrainingTexts([source], root).contaminated(items) == [True, True, True, False]
    with pytest.raises(TypeError):
        TrainingTexts([source], root).contaminated(items[::-1])


def test_datamodules_tell_what_they_train_on(tmp_path):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = [{"prompt": text, "chosen": "yes", "rejected": "no", "text": "x", "completion": "yes"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    for kind in (TextDataModule, InstructionDataModule, PreferenceDataModule, PromptDataModule):
        data = kind(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
        assert data.training_texts().contaminated([[text], ["yes"]]) == [True, None], kind
    with pytest.raises(DataError, match="does not exist"):
        TrainingTexts([Source("nowhere.txt")], tmp_path / "cache")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
def test_real_questions_in_real_training_data(tmp_path):
    train, test = (
        [json.loads(line) for line in (SHARED / "gsm8k" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    items = [list(row.values()) for row in test]
    expected = by_hand(items, [text for row in train for text in row.values()])
    texts = TrainingTexts([Source(str(SHARED / "gsm8k" / "train.jsonl"))], tmp_path)
    found = texts.contaminated(items)
    assert {number for number, flag in enumerate(found) if flag} == expected
    assert 0 < len(expected) < 30
