"""Real and synthetic records in one DataModule: what is mixed, what validates, and what never comes in."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from datamodules import InstructionDataModule, PreferenceDataModule, RecordSource, SyntheticDataModule
from datamodules.errors import DataError
from datamodules.synthetic.filters import ExactDuplicates
from datamodules.synthetic.generators import Answers, Paraphrase, PreferencePairs, SelfInstruct
from datamodules.synthetic.openai_engine import OpenAIEngine
from llm_lightning.rewards import Length
from tests.chat_server import ChatServer, status, words
from tests.datamodules.chat_tokenizers import chat_tokenizer

QUESTIONS = [f"{words({'number': i})}: which comes after {i}?" for i in range(120)]  # pairs must not resemble


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


@pytest.fixture
def settings(tmp_path):
    """Those of a DataModule over real records."""
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")
    rows = [{"prompt": text, "completion": f"It is {i + 1}."} for i, text in enumerate(QUESTIONS)]
    pairs = [{"prompt": text, "chosen": f"It is {i + 1}.", "rejected": "No."} for i, text in enumerate(QUESTIONS)]
    for name, records in (("rows", rows), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = {"tokenizer": str(tmp_path / "tokenizer"), "seq_len": 256, "batch_size": 2, "val_share": 0.2}
    return common | {"cache_dir": str(tmp_path / "cache")}


def wrapped(data, generators, server, tmp_path, **changes):
    engine = OpenAIEngine(server.url, "m")
    module = SyntheticDataModule(data, generators, [ExactDuplicates()], engine, folder=str(tmp_path / "s"), **changes)
    module.prepare_data()
    module.setup("fit")
    return module


def texts(module, loader):
    tokenizer = module.tokenizer
    return [tokenizer.decode(row) for batch in loader for row in batch["input_ids"]]


def test_both_are_trained_and_only_the_real_ones_validate(settings, server, tmp_path):
    data = InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings)
    module = wrapped(data, {"new": SelfInstruct(count=80)}, server, tmp_path)
    alone = InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings)
    alone.prepare_data()
    alone.setup("fit")
    assert texts(module, module.val_dataloader()) == texts(alone, alone.val_dataloader())
    trained = "".join(texts(module, module.train_dataloader()))
    rows = pq.read_table(module.result).to_pylist()
    assert len(rows) == 80
    assert sum(row["messages"][0]["content"] in trained for row in rows) > 70
    assert sum(question in trained for question in QUESTIONS) > 70
    # No example that a model was shown came from validation.
    held_out = {record.messages[0]["content"] for record in module.records("val")}
    assert len(held_out) == 24
    asked = " ".join(message["content"] for body in server.calls for message in body["messages"])
    assert not any(question in asked for question in held_out)
    assert sum(question in asked for question in QUESTIONS) > 50


def test_a_question_of_validation_is_never_trained(settings, server, tmp_path):
    data = InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    number = re.compile(r"after (\d+)")
    server.answer = lambda body: f"Answer {number.search(body['messages'][-1]['content'])[1]} by the model"
    module = wrapped(data, {"all": Answers(path=str(path))}, server, tmp_path, share=0.9)
    held_out = {int(re.search(r"\d+", record.messages[0]["content"])[0]) for record in module.records("val")}
    order = module.data.make_rows(module.data._train)
    trained = "".join(module.tokenizer.decode(np.concatenate([p.ids for p in order[i]])) for i in range(len(order)))
    by_model = {int(number) for number in re.findall(r"Answer (\d+) by the model", trained)}
    assert by_model == set(range(120)) - held_out and len(held_out) == 24


@pytest.mark.parametrize("weight", [None, 3.0])
def test_the_share_is_a_bound(settings, server, tmp_path, weight):
    source = RecordSource(str(tmp_path / "rows.jsonl"), weight=weight)
    data = InstructionDataModule(sources=[source], **settings)
    generators = {"new": SelfInstruct(count=300)}
    module = wrapped(data, generators, server, tmp_path, share=0.25)
    [real], [synthetic] = module.row_counts()
    assert synthetic == int(real / 3)
    whole = "".join(texts(module, module.train_dataloader()))
    assert sum(question in whole for question in QUESTIONS) == 96  # all that do not validate
    much = wrapped(data, generators, server, tmp_path, share=0.99)
    [real], [synthetic] = much.row_counts()
    assert synthetic < 0.99 * real / 0.01  # there are no more


def test_pairs(settings, server, tmp_path):
    server.answer = lambda body: " ".join(["word"] * (1 + body["seed"] % 7))
    data = PreferenceDataModule(str(tmp_path / "pairs.jsonl"), **settings)
    module = wrapped(data, {"pairs": PreferencePairs(Length(7))}, server, tmp_path)
    rows = pq.read_table(module.result).to_pylist()
    assert len(rows) > 10 and all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert all(dict(row["scores"])["chosen_score"] > dict(row["scores"])["rejected_score"] for row in rows)
    assert module.statistics["train"]["num_documents"] > 60 + len(rows)
    assert module.share_prompts and module.seq_len == 256  # what is asked of the real data
    batch = next(iter(module.train_dataloader()))
    assert {"input_ids", "position_ids"} <= batch.keys()


def test_pairs_are_made_of_single_answers_and_train_beside_them(settings, server, tmp_path):
    server.answer = lambda body: " ".join(["word"] * (1 + body["seed"] % 7))
    singles = [
        {"prompt": text, "completion": f"It is {i + 1}.", "label": i % 3 == 0} for i, text in enumerate(QUESTIONS)
    ]
    (tmp_path / "singles.jsonl").write_text("".join(json.dumps(record) + "\n" for record in singles))
    data = PreferenceDataModule(str(tmp_path / "singles.jsonl"), **settings)
    module = wrapped(data, {"pairs": PreferencePairs(Length(7))}, server, tmp_path)
    made = len(pq.read_table(module.result))
    desirable, undesirable = (module.statistics["train"][name] for name in ("num_desirable", "num_undesirable"))
    assert made > 10 and desirable + undesirable == 96
    assert module.num_labelled("train") == (desirable + made, undesirable + made)
    again = PreferenceDataModule(str(tmp_path / "singles.jsonl"), **settings)
    with pytest.raises(DataError, match=r"nothing came of any record: words: .* cannot be learned from"):
        wrapped(again, {"words": Paraphrase()}, server, tmp_path)


def test_generators_have_to_fit_the_data(settings, server, tmp_path):
    pairs = PreferenceDataModule(str(tmp_path / "pairs.jsonl"), **settings)
    with pytest.raises(DataError, match=r"new \(SelfInstruct\) makes no preference pairs, which PreferenceDataModule"):
        wrapped(pairs, {"new": SelfInstruct()}, server, tmp_path)
    rows = InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings)
    with pytest.raises(DataError, match="makes no conversations"):
        wrapped(rows, {"new": PreferencePairs()}, server, tmp_path)
    with pytest.raises(DataError, match="the name"):
        wrapped(rows, {"../up": SelfInstruct()}, server, tmp_path)


@pytest.mark.filterwarnings("ignore:A call to")
def test_what_failed_is_made_the_next_time(settings, server, tmp_path):
    data = InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings)
    failing = {"on": True}
    server.fault = lambda body, attempt: status(500) if failing["on"] and body["seed"] % 5 == 0 else None
    engine = OpenAIEngine(server.url, "m", max_retries=0, concurrency=4)
    module = SyntheticDataModule(data, {"new": SelfInstruct(count=60)}, [], engine, folder=str(tmp_path / "s"))
    module.augment()
    first = pq.read_table(module.result).column("id").to_pylist()
    assert 10 < len(first) < 60
    failing["on"], begun = False, len(server.calls)
    module.augment()
    second = pq.read_table(module.result).column("id").to_pylist()
    assert len(second) == 60 and set(first) < set(second)
    assert len(server.calls) - begun < 2 * (60 - len(first)) + 1  # only what had failed, and what comes after it


@pytest.mark.parametrize("how", ["flip", "cut", "seal"])
def test_a_result_that_a_disk_changed_is_made_anew_and_nobody_is_asked_again(how, settings, server, tmp_path, capfd):
    module = wrapped(
        InstructionDataModule(str(tmp_path / "rows.jsonl"), **settings),
        {"new": SelfInstruct(count=9)},
        server,
        tmp_path,
    )
    data, num_calls = module.result.read_bytes(), len(server.calls)
    if how == "seal":
        module.result.with_suffix(".seal.json").unlink()
    else:
        half = len(data) // 2
        module.result.write_bytes(data[:half] + (b"" if how == "cut" else bytes([data[half] ^ 2]) + data[half + 1 :]))
    module.augment()
    assert module.result.read_bytes() == data and len(server.calls) == num_calls
    assert "(filtered records) is not as it was written" in capfd.readouterr().err
