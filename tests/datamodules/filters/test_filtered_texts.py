"""Filters of `TextDataModule`: what stays of texts with planted faults, and that nothing else changes it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import DataError, TextDataModule, TextSource
from datamodules.encoding import tokenization
from datamodules.filters import ExactDuplicates, NearDuplicates, RepeatedLines, StopWords, Words
from datamodules.filters.duplicates import word_runs
from datamodules.filters.kept import read_report
from datamodules.serving.dataset import Documents
from tests.datamodules.filters.own_filter import Mentions

FILTERS = [Words(min=20), StopWords(), RepeatedLines(), ExactDuplicates(), NearDuplicates()]
WORDS = [f"{a}{b}{c}" for a in "bdfgkmpt" for b in "aeiou" for c in ("st", "rn", "ll", "x")]


def prose(count: int, seed: int = 0) -> list[str]:
    g = random.Random(seed)
    return [f"The {' '.join(g.choices(WORDS, k=60))} and {' '.join(g.choices(WORDS, k=60))}." for _ in range(count)]


def planted(good: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Documents among which some are bad, in an order in which the good ones come first; and the bad ones by filter."""
    g = random.Random(1)

    def edited(text: str) -> str:
        words = text.split()
        words[g.randrange(3, len(words))] = "otherwise"
        return " ".join(words)

    bad = {
        "words": [" ".join(text.split()[:12]) for text in good[:5]],
        "stop_words": [" ".join(g.choices(WORDS, k=40)) for _ in range(4)],
        "repeated_lines": [f"{text}\n" + "All rights of the owner and others.\n" * 40 for text in good[5:8]],
        "exact_duplicates": [*good[:6], *(text.upper().replace(" ", " - ") for text in good[6:10])],
        "near_duplicates": [edited(text) for text in good[10:16]],
    }
    return [*good, *(text for texts in bad.values() for text in texts)], bad


@pytest.fixture
def module(cache):
    def make(**settings) -> TextDataModule:
        defaults = {"vocab_size": 300, "seq_len": 64, "batch_size": 4, "val_share": 0.0, "cache_dir": str(cache)}
        data = TextDataModule(**{**defaults, "filters": FILTERS, **settings})
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def texts_of(data: TextDataModule) -> list[str]:
    """The whole documents that are trained on."""
    documents = Documents(data._train)
    return [data.tokenizer.decode(documents[i].ids[:-1]) for i in range(len(documents))]


def taken(data: TextDataModule) -> dict[str, int]:
    return {stage["name"]: stage["documents"] for stage in read_report(data.filter_report)["stages"]}


def test_what_was_planted_goes_and_all_else_stays(module, write_jsonl):
    good = prose(60)
    documents, bad = planted(good)
    data = module(path=write_jsonl(documents))
    assert texts_of(data) == good
    assert taken(data) == {name: len(texts) for name, texts in bad.items()}
    report = read_report(data.filter_report)
    assert report["documents"] == len(documents) and report["characters"] == sum(map(len, documents))
    for stage in report["stages"]:
        assert stage["characters"] == sum(map(len, bad[stage["name"]])) and sum(stage["reasons"].values())
        assert 3 <= len(stage["examples"]) <= 4
        assert all(any(text.startswith(each["text"][:60]) for text in bad[stage["name"]]) for each in stage["examples"])
    near = report["stages"][-1]
    assert near["settings"] == {"similarity": 0.7, "run": 5}
    assert all(any(text.startswith(each["earlier"][:50]) for text in good[10:16]) for each in near["examples"])


def test_real_text_with_planted_copies(module, write_jsonl):
    path = Path(__file__).parents[4] / ".." / "shared" / "data" / "wikitext2" / "valid.txt"
    if not path.exists():
        pytest.skip("needs the shared data")
    lines = [line.strip() for line in path.read_text().splitlines() if len(line.split()) > 40]
    real = list(dict.fromkeys(lines))[:400]
    copies = random.Random(0).sample(range(len(real)), 40)
    shifted = [f"By the way: {real[i]}" for i in copies[20:] if len(real[i].split()) > 60]
    data = module(path=write_jsonl([*real, *(real[i].lower() for i in copies[:20]), *shifted]))
    assert taken(data)["exact_duplicates"] == 20
    assert taken(data)["near_duplicates"] == len(shifted) > 10
    assert len(texts_of(data)) >= 0.95 * len(real)


def files_under(folder: Path) -> dict[str, bytes]:
    kinds = ("tokens", "rows", "filtered")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in kinds for path in (folder / kind).rglob("*") if path.is_file() and path.name != "tokenizer.json"
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Twelve files, with copies in other files than their originals."""
    documents, _ = planted(prose(120, seed=3))
    random.Random(2).shuffle(documents)
    (tmp_path / "texts").mkdir()
    for number in range(12):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents[number::12])
        (tmp_path / "texts" / f"{number:02}.jsonl").write_text(lines)
    return str(tmp_path / "texts")


def test_the_number_of_processes_changes_nothing(module, folder, tmp_path, monkeypatch):
    made = []
    for count in (1, 3):
        monkeypatch.setattr(tokenization, "available_cores", lambda count=count: count)
        module(path=folder, cache_dir=str(tmp_path / f"cache-{count}"))
        made.append(files_under(tmp_path / f"cache-{count}"))
    assert made[0] == made[1] and len(made[0]) > 36


PREPARE = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from datamodules.encoding.filtered_texts import FilteredTextEncoder
from datamodules.encoding.tokenization import tokenize
from datamodules.filters import *
from datamodules.filters.kept import keep
from datamodules.records.text_source import TextSource, text_units

texts, tokenizer, root = sys.argv[1:]
chain = Chain([Words(min=20), StopWords(), RepeatedLines(), ExactDuplicates(), NearDuplicates()])
encoder = FilteredTextEncoder(Tokenizer.from_file(tokenizer), [], [0], chain.noting())
shards = tokenize(text_units(TextSource(texts), Path(root)), encoder, Path(root))
print(keep(shards, chain, encoder.tokenizer, Path(root))[1])
"""


def test_a_killed_preparation_goes_on(module, folder, tmp_path):
    data = module(path=folder)
    data.tokenizer.save_pretrained(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PREPARE, folder, str(tmp_path / "tokenizer.json")]

    def started(root: Path) -> subprocess.Popen:
        return subprocess.Popen([*command, str(root)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started(whole).communicate()[0]
    for wanted in ("tokens/*/*.json", "filtered/.*.tmp"):
        build = started(killed)
        end = time.monotonic() + 60
        while build.poll() is None and not list(killed.glob(wanted)) and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(build.pid, signal.SIGKILL)
        build.communicate()
    assert started(killed).communicate()[0]
    assert files_under(killed) == files_under(whole)
    assert not list(killed.rglob("*.tmp"))


def test_another_threshold_reads_nothing_again_and_is_another_order_of_rows(module, folder, cache):
    first = module(path=folder)
    stamps = {path: path.stat().st_mtime_ns for path in (cache / "tokens").rglob("*") if path.suffix == ".json"}
    second = module(path=folder, filters=[*FILTERS[:-1], NearDuplicates(0.99)])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert taken(second)["near_duplicates"] < taken(first)["near_duplicates"]
    assert first.rows_key() != second.rows_key()
    third = module(path=folder, filters=[Words(min=10), *FILTERS[1:]])
    assert third.rows_key() != first.rows_key() and taken(third)["words"] == 0
    again = module(path=folder)
    assert again.rows_key() == first.rows_key() and again.state_dict() == first.state_dict()
    a, b = next(iter(first.train_dataloader())), next(iter(again.train_dataloader()))
    assert torch.equal(a["input_ids"], b["input_ids"])


def test_the_first_source_keeps_what_several_have_and_validation_stays_whole(module, write_jsonl):
    good = prose(60)
    a, b = write_jsonl(good[:40], "a.jsonl"), write_jsonl(good[20:], "b.jsonl")
    val = write_jsonl([*good[:5], "Too short."], "val.jsonl")
    sources = [TextSource(a, weight=1), TextSource(b, weight=1)]
    data = module(sources=sources, val_path=val, val_share=None)
    assert [index.statistics["num_documents"] for index, _ in data._train] == [40, 20]
    assert data.statistics["val"]["num_documents"] == 6


def test_what_is_held_out_is_held_out_of_what_stays(module, write_jsonl):
    documents, _ = planted(prose(100))
    data = module(path=write_jsonl(documents), val_share=0.1)
    assert data.statistics["train"]["num_documents"] == 90 and data.statistics["val"]["num_documents"] == 10


def test_a_tokenizer_learns_nothing_from_what_is_taken_out(module, write_jsonl):
    good = prose(80)
    junk = ["zqzqzqzq " * 15] * 200
    plain, with_junk = module(path=write_jsonl(good, "a.jsonl")), module(path=write_jsonl([*junk, *good], "b.jsonl"))
    assert with_junk.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    unfiltered = module(path=write_jsonl([*junk, *good], "b.jsonl"), filters=None)
    assert any("zqzq" in token for token in unfiltered.tokenizer.get_vocab())


def test_a_source_of_which_nothing_stays_is_named_with_the_filters(module, write_jsonl):
    with pytest.raises(DataError, match=r"nothing to train on in .*short\.jsonl.*filters: 3 by words, 1 by stop_words"):
        module(path=write_jsonl([*["a b"] * 3, "x " * 30], "short.jsonl"), vocab_size=260)


def test_an_own_filter_runs_in_other_processes(module, write_jsonl, monkeypatch):
    monkeypatch.setattr(tokenization, "available_cores", lambda: 2)
    a, b = write_jsonl([*prose(20), "a bost b"], "a.jsonl"), write_jsonl(["nothing of it", "bost"], "b.jsonl")
    data = module(path=[a, b], filters=[Mentions("bost")])
    assert taken(data)["mentions"] == sum("bost" in text.split() for text in prose(20)) + 2


def test_runs_of_words_are_sets_of_tuples():
    g = random.Random(5)
    for _ in range(30):
        pair = [g.choices(WORDS[:6], k=g.randrange(1, 60)) for _ in range(2)]
        for length in (1, 3, 5):
            hashes = [set(word_runs(" ".join(words), length).tolist()) for words in pair]
            tuples = [{tuple(w[i : i + min(length, len(w))]) for i in range(max(1, len(w) - length + 1))} for w in pair]
            assert len(hashes[0] & hashes[1]) == len(tuples[0] & tuples[1])
            assert len(hashes[0] | hashes[1]) == len(tuples[0] | tuples[1])


def test_similarity_is_the_jaccard_similarity_and_places_are_of_the_earlier_one(tmp_path):
    from datamodules.storage.similarity import most_similar

    g = random.Random(6)
    first = prose(80)
    documents = []
    for text in first:
        words = text.split()
        for place in g.sample(range(len(words)), g.randrange(1, 4)):
            words[place] = g.choice(WORDS)
        documents += [text, " ".join(words)]
    rows = NearDuplicates().signs(documents)
    nearest = most_similar(len(rows), lambda number: rows["bands"][:, number], lambda places: rows["signature"][places])
    sets = [set(word_runs(text, 5).tolist()) for text in documents]
    truth = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
    assert np.abs(nearest.similarity[1::2] - truth).mean() < 0.04 and (nearest.place[1::2] == range(0, 160, 2)).all()
    assert (nearest.place[::2] == -1).all() and 0.5 < truth.mean() < 0.95
