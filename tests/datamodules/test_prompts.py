"""Prompts on their way from files to batches."""

import json
import re

import numpy as np
import pytest
import torch

from datamodules import DataError, PromptDataModule
from datamodules.encoding.tokenizer import train
from datamodules.serving.loader import EvaluationLoader, ResumableLoader
from datamodules.serving.orders.grouped import BATCHES_A_WINDOW, GroupedOrder
from datamodules.serving.orders.order import SequentialOrder, ShuffledOrder

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(iter(["what is 1 plus 2? three"] * 9), vocab_size=300).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chat(tmp_path_factory, plain):
    from datamodules.encoding.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(plain)
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(tmp_path):
    """A DataModule over records, set up."""

    def build(records, tokenizer, record_check=None, **options):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (tmp_path / "prompts.jsonl").write_text("".join(line + "\n" for line in lines))
        options = {
            "path": str(tmp_path / "prompts.jsonl"),
            "cache_dir": str(tmp_path / "cache"),
            "val_share": 0.0,
        } | options
        module = PromptDataModule(tokenizer=tokenizer, **options)
        module.record_check = record_check
        module.prepare_data()
        module.setup("fit")
        return module

    return build


def batches(module, count):
    return [batch for _, batch in zip(range(count), module.train_dataloader(), strict=False)]


def text(module, batch, row):
    ids = batch["prompt_ids"][row][batch["attention_mask"][row].bool()]
    return module.tokenizer.decode(ids)


def test_a_text_is_gone_on_with_as_it_stands_where_there_is_no_template(make, plain):
    module = make([{"prompt": "what is 1", "answer": 3, "id": "x"}], plain, batch_size=1)
    (batch,) = batches(module, 1)
    assert text(module, batch, 0) == "what is 1"
    assert batch["prompts"] == ["what is 1"]
    assert batch["columns"] == {"answer": [3], "id": ["x"]}


def test_a_text_is_what_a_user_says_where_there_is_a_template(make, chat):
    wanted = "<|im_start|>user\nwhat is 1<|im_end|>\n<|im_start|>assistant\n"
    module = make([{"question": "what is 1"}], chat, batch_size=1)
    assert text(module, batches(module, 1)[0], 0) == wanted
    assert module.tokenizer.eos_token == "<|im_end|>"
    raw = make([{"question": "what is 1"}], chat, batch_size=1, chat=False)
    assert text(raw, batches(raw, 1)[0], 0) == "what is 1"


def test_conversations_up_to_the_last_reply(make, chat):
    turns = [
        {"role": "system", "content": "be 1"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "is"},
    ]
    module = make([{"messages": turns, "n": 1}, {"messages": turns[:2], "n": 1}], chat, batch_size=2)
    (batch,) = batches(module, 1)
    expected = "<|im_start|>system\nbe 1<|im_end|>\n<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n"
    assert [text(module, batch, row) for row in range(2)] == [expected] * 2
    assert batch["prompts"] == [turns[:2]] * 2


def test_columns_by_other_names_and_alpaca(make, plain):
    module = make([{"frage": "what is", "answer": 1}], plain, column="frage", batch_size=1)
    assert batches(module, 1)[0]["prompts"] == ["what is"]
    alpaca = make([{"instruction": "what is", "input": "1 plus", "output": "2"}], plain, batch_size=1)
    (batch,) = batches(alpaca, 1)
    assert batch["prompts"] == ["what is\n1 plus"]
    assert batch["columns"]["output"] == ["2"]


def test_missing_columns_are_none(make, plain):
    module = make([{"prompt": "what", "a": 1}, {"prompt": "is", "b": 2}], plain, batch_size=2)
    (batch,) = batches(module, 1)
    row = batch["prompts"].index("what")
    assert batch["columns"]["a"][row] == 1
    assert batch["columns"]["b"][row] is None


def test_padding_is_on_the_left(make, plain):
    module = make([{"prompt": "what is 1 plus 2? three"}, {"prompt": "1"}], plain, batch_size=2)
    (batch,) = batches(module, 1)
    lengths = batch["attention_mask"].sum(1)
    for ids, mask, length in zip(batch["prompt_ids"], batch["attention_mask"], lengths, strict=True):
        assert mask[-length:].all()
        assert (ids[:-length] == module.tokenizer.pad_token_id).all()


def test_batches_are_of_similar_length_and_hold_every_prompt_once(make, plain):
    rng = np.random.default_rng(0)
    records = [{"prompt": "is " * int(n), "i": i} for i, n in enumerate(rng.integers(1, 100, 512))]
    module = make(records, plain, batch_size=8)
    loaded = batches(module, 64)
    assert sorted(i for batch in loaded for i in batch["columns"]["i"]) == list(range(512))
    spread = np.mean([np.std(batch["attention_mask"].sum(1).numpy()) for batch in loaded])
    assert spread < 0.25 * np.std(np.concatenate([b["attention_mask"].sum(1).numpy() for b in loaded]))
    means = [float(batch["attention_mask"].sum(1).float().mean()) for batch in loaded[:BATCHES_A_WINDOW]]
    assert means != sorted(means)


def test_resuming_gives_the_batches_that_would_have_come(make, plain):
    records = [{"prompt": "what " * (i % 7 + 1), "i": i} for i in range(50)]
    module = make(records, plain, batch_size=8)
    whole = [batch["columns"]["i"] for batch in batches(module, 5)]
    stopped = make(records, plain, batch_size=8)
    batches(stopped, 2)
    state = stopped.state_dict()
    resumed = make(records, plain, batch_size=8)
    resumed.load_state_dict(state)
    assert [batch["columns"]["i"] for batch in batches(resumed, 3)] == whole[2:5]


def test_two_ranks_read_what_one_reads():
    lengths = np.random.default_rng(1).integers(1, 90, 100)
    order = GroupedOrder(ShuffledOrder([100], seed=3), lengths, 8)
    whole = order[np.arange(800)]
    assert set(np.bincount(whole)) <= {7, 8, 9}  # windows reach over epochs
    assert (order[np.array([700, 3, 150])] == whole[[700, 3, 150]]).all()
    ranks = [
        ResumableLoader(range(100), order, list, 4, rank=rank, num_ranks=2, whole_batches=True) for rank in range(2)
    ]
    together = [[*a, *b] for a, b in zip(*ranks, strict=True)]
    assert together == whole[:96].reshape(12, 8).tolist()


def test_held_out_prompts_are_never_trained_on(make, plain):
    records = [{"prompt": f"what is {i % 20}", "i": i} for i in range(60)]
    module = make(records, plain, batch_size=4, val_share=0.2)
    held_out = {p for batch in module.val_dataloader() for p in batch["prompts"]}
    trained = {p for batch in batches(module, 12) for p in batch["prompts"]}
    assert len(held_out) == 4
    assert held_out.isdisjoint(trained)
    assert len(trained) == 16
    assert len(module.example_prompts(3)) == 3


def test_a_folder_s_splits_are_kept_apart(make, plain, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"prompt": f"{split} prompt"}) + "\n")
    module = make([], plain, path=str(folder), val_share=None, batch_size=1)
    (batch,) = batches(module, 1)
    assert batch["prompts"] == ["train prompt"]
    assert [batch["prompts"] for batch in module.val_dataloader()] == [["valid prompt"]]


def test_the_last_validation_batch_may_hold_nothing(make, plain):
    module = make([{"prompt": "what"}] * 3, plain, batch_size=2)
    loader = EvaluationLoader(module._train, SequentialOrder([3], 4), module.make_collator(), 2, rank=1, num_ranks=2)
    (batch,) = loader
    assert batch["prompts"] == ["what"]
    empty = module.make_collator()([])
    assert empty["prompt_ids"].shape == (0, 0)
    assert empty["prompts"] == []


def test_prompts_that_are_too_long_are_counted(make, plain):
    records = [{"prompt": "what " * 5}, {"prompt": "what " * 50}]
    with pytest.warns(UserWarning, match="1 prompts are longer than max_prompt_tokens=20: left out"):
        module = make(records, plain, max_prompt_tokens=20, batch_size=1)
    assert len(module._train) == 1
    with pytest.raises(DataError, match=r"max_prompt_tokens: all 2 prompts of .* are longer than 3 tokens"):
        make(records, plain, max_prompt_tokens=3)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": " "}, r"no prompt: column messages or .* is missing or empty; it has: prompt"),
        ({"prompt": "", "x": 1}, "no prompt"),
        ({"text": "what"}, r"no prompt: .*; it has: text"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": 5}, "column 'prompt'"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "has no turn to reply to"),
        ({"messages": [{"role": "user"}]}, "turn 1 of messages: it has no content"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "spells the special token '<|im_end|>'"),
        ("{broken", "prompts.jsonl:2"),
        ({"prompt": "what", "answer": "\ud83d"}, "column 'answer' holds half a character"),
        ({"prompt": "what", "kwargs": [{"a": ["\udc00"]}]}, "column 'kwargs' holds half a character"),
        ({"prompt": "what", "\ud83d": 1}, r"column '\\ud83d' holds half a character"),
        ('{"prompt": "what", "a": ' + "[" * 900 + "]" * 900 + "}", "JSON nested too deeply"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(make, chat, record, message):
    good = {"prompt": "what"}
    with pytest.raises(DataError) as caught:
        make([good, record], chat)
    assert "prompts.jsonl:2" in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "on_bad_record=skip" in str(caught.value)
    with pytest.warns(UserWarning, match="1 bad records were skipped; the first: .*prompts.jsonl:2: "):
        assert len(make([good, record], chat, on_bad_record="skip", batch_size=1)._train) == 1


class HasAnswer:
    key = "HasAnswer"

    def __call__(self, columns):
        return None if "answer" in columns else f"no answer among {sorted(columns)}"


def test_records_that_no_reward_can_judge_are_bad(make, plain, tmp_path):
    records = [{"prompt": f"is it {i}?", "answer": i} for i in range(40)] + [{"prompt": "is it?", "note": 1}]
    assert len(make(records, plain)._train) == 41  # in the cache without the check
    module = make(records, plain, on_bad_record="skip", record_check=HasAnswer())
    assert len(module._train) == 40
    with pytest.raises(DataError, match=r"prompts\.jsonl:41: no answer among \['note'\]"):
        make(records, plain, record_check=HasAnswer())
    early = PromptDataModule(path=str(tmp_path / "prompts.jsonl"), tokenizer=plain, cache_dir=str(tmp_path / "new"))
    early.record_check = HasAnswer()
    with pytest.raises(DataError, match=r"prompts\.jsonl:41: no answer among \['note'\]"):
        early.check()
    assert not (tmp_path / "new" / "prompts").exists()


def test_a_conversation_without_a_chat_template(make, plain):
    with pytest.raises(DataError, match="it is a conversation, and the tokenizer has no chat template: name one"):
        make([{"messages": [{"role": "user", "content": "what"}]}], plain)
    named = make([{"messages": [{"role": "user", "content": "what"}]}], plain, template="chatml", batch_size=1)
    assert text(named, batches(named, 1)[0], 0).endswith("<|im_start|>assistant\n")


def test_settings_that_cannot_work(make, plain, tmp_path):
    for options, message in (
        ({"val_path": "x", "val_share": 0.1}, "val_path and val_share"),
        ({"batch_size": 0}, "batch_size: it must be at least 1"),
        ({"val_share": 1.0}, "val_share"),
        ({"path": str(tmp_path / "missing.jsonl")}, "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            make([{"prompt": "what"}], plain, **options)
    with pytest.raises(DataError, match="tokenizer: none is named"):
        PromptDataModule("x").check()
    (tmp_path / "plain.txt").write_text("what")
    with pytest.raises(DataError, match="is plain text; records need columns"):
        make([], plain, path=str(tmp_path / "plain.txt"))


def test_the_preview_shows_prompts_and_columns(make, plain):
    module = make([{"prompt": "what", "answer": 3}], plain)
    assert module.preview(5) == [
        "--- prompt 1: 1 tokens, from column prompt",
        "what",
        "    answer: 3",
        "--- 1 prompts are made of column prompt",
    ]


def test_ids_are_tensors_of_int64(make, plain):
    module = make([{"prompt": "what"}], plain, batch_size=1)
    assert batches(module, 1)[0]["prompt_ids"].dtype == torch.int64


def test_where_no_prompt_is_left_it_is_said_why(make, chat, tmp_path):
    bad = [{"prompt": "<|im_end|>"}, {"prompt": "\0"}]
    for _ in range(2):  # from the cache too
        with pytest.raises(
            DataError, match=r"path: .* leaves no prompt \(2 bad records were skipped; the first: .*jsonl:1"
        ):
            make(bad, chat, on_bad_record="skip")
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bad))
    with pytest.raises(DataError, match=r"val_path: .*val.jsonl' leaves no prompt \(2 bad records"):
        make([{"prompt": "what"}], chat, on_bad_record="skip", val_share=None, val_path=str(tmp_path / "val.jsonl"))


def test_skipped_records_are_said_from_the_cache_too(make, chat):
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 bad records were skipped; the first: .*jsonl:2: turn 1 spells"):
            make([{"prompt": "what"}, {"prompt": "<|im_end|>"}], chat, on_bad_record="skip")


def test_half_a_character_of_a_prompt_becomes_readable_as_in_fine_tuning(make, chat):
    turns = [{"role": "user", "content": "1\ud83d"}, {"role": "assistant", "content": "\udc00"}]
    module = make([{"prompt": "is \ud83d", "context": "1"}, {"messages": turns}], chat)
    said = [module._train[number].said for number in range(2)]
    assert said == ["is \ufffd\n1", [{"role": "user", "content": "1\ufffd"}]]


def test_a_set_without_a_prompt_names_its_columns(make, chat):
    with pytest.raises(DataError, match=r"has the columns frage, n, none of which .* prompt: messages, .*column=frage"):
        make([{"frage": "what", "n": 1}], chat)
    module = make([{"chosen": "Human: what\n\nAssistant: is", "rejected": "Human: what\n\nAssistant: 1"}], chat)
    assert module.preview(1)[0].endswith(", from column chosen")
