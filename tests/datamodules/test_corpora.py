import json
import re

import pytest

from datamodules.corpora import corpus_file
from datamodules.corpora.python_pairs import LONGEST_ANSWER, SHORTEST_ANSWER
from datamodules.records.conversations import Conversation, conversation_of, detect_shape
from datamodules.records.text_source import TextSource, text_units, texts_of
from datamodules.sources.bad_records import BadRecords


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pairs(root):
    return [json.loads(line) for line in corpus_file("python_pairs", root).read_text().splitlines()]


def test_python_docs_is_real_prose_by_module(root):
    documents = [
        text for unit in text_units(TextSource("python_docs"), root) for text in texts_of(unit, BadRecords(unit))
    ]
    assert sum(map(len, documents)) > 1_500_000
    assert len(documents) > 400
    modules = [text.split("\n", 1)[0] for text in documents]
    assert {"argparse", "json", "asyncio.locks", "collections"} <= set(modules)
    assert not any(name.startswith(("test.", "idlelib", "lib2to3")) for name in modules)
    assert any("class argparse.ArgumentParser\n\nObject for parsing command line strings" in text for text in documents)
    assert any(text.startswith('The "assert" statement') or '"assert"' in text[:300] for text in documents)


def test_it_is_written_once(root):
    path = corpus_file("python_docs", root)
    written = path.stat().st_mtime_ns
    assert corpus_file("python_docs", root) == path and path.stat().st_mtime_ns == written


def test_python_pairs_are_questions_with_short_answers_in_prose(pairs):
    assert len(pairs) > 1_500
    answers = {pair["prompt"]: pair["completion"] for pair in pairs}
    assert any("`textwrap.dedent(text)`" in question for question in answers)
    dedent = next(answer for question, answer in answers.items() if "`textwrap.dedent(text)`" in question)
    assert dedent.startswith("Remove any common leading whitespace from every line in `text`.")
    assert all(SHORTEST_ANSWER <= len(answer) <= LONGEST_ANSWER for answer in answers.values())
    assert len(set(answers.values())) == len(pairs)
    assert not any(">>>" in answer or ":func:" in answer or "``" in answer for answer in answers.values())
    assert not any(re.search(r"`[\w.]*\b_", question) for question in answers)  # nothing private
    assert not any(answer[0].islower() for answer in answers.values())


def test_python_pairs_are_asked_in_several_ways_and_stay_the_same(pairs, tmp_path):
    openings = [" ".join(pair["prompt"].split()[:2]) for pair in pairs]
    assert max(openings.count(opening) for opening in set(openings)) < 0.7 * len(pairs)
    assert [json.loads(line) for line in corpus_file("python_pairs", tmp_path).read_text().splitlines()] == pairs


def test_python_pairs_are_conversations(pairs):
    shape = detect_shape(pairs[:16], None, "python_pairs")
    assert shape.name == "prompt-completion"
    converted = [conversation_of(pair, shape.name, None, "train") for pair in pairs]
    assert all(isinstance(conversation, Conversation) for conversation in converted)
    assert converted[0].messages[0]["role"] == "user" and converted[0].trainable == [False, True]
