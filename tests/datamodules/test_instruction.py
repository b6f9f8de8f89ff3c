import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from datamodules import DataError, InstructionDataModule, RecordSource
from datamodules.encoding import tokenization
from datamodules.serving.preview import marked
from datamodules.sources import text_files
from tests.datamodules.chat_tokenizers import TEMPLATES, chat_tokenizer
from tests.datamodules.conftest import EMOJI, SPANISH


def pairs(count: int) -> list[dict[str, str]]:
    return [{"question": f"{i}? {SPANISH[: i % 60]}", "answer": f"{EMOJI[: i % 20]}{i}"} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(records: list, name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@pytest.fixture
def module(write, tmp_path, cache):
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")

    def make(records=None, **settings) -> InstructionDataModule:
        defaults = {"tokenizer": str(tmp_path / "tokenizer"), "seq_len": 256, "batch_size": 2, "cache_dir": str(cache)}
        if "sources" not in settings and "path" not in settings:
            settings["path"] = write(pairs(100) if records is None else records)
        return InstructionDataModule(**defaults | settings)

    return make


def ready(data: InstructionDataModule) -> InstructionDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def replies(data: InstructionDataModule, loader) -> list[str]:
    """The trained text of each document of an epoch."""
    found = []
    for batch in loader:
        for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for begin, end in pairwise(starts):
                trained = labels[begin:end] != -100
                assert torch.equal(labels[begin:end][trained], ids[begin:end][trained])
                if trained.any():
                    found.append(data.tokenizer.decode(ids[begin:end][trained]))
    return found


def test_every_reply_is_trained_once_an_epoch_and_nothing_of_the_questions(module):
    data = ready(module(val_share=0.1, batch_size=1))
    train, val = replies(data, data.train_dataloader()), replies(data, data.val_dataloader())
    assert sorted(train + val) == sorted(record["answer"] + "<|im_end|>" for record in pairs(100))
    assert len(val) == data.statistics["val"]["num_documents"] == 10
    statistics = data.statistics["train"]
    assert statistics["num_trained"] == sum(len(data.tokenizer(text).input_ids) for text in train)
    assert statistics["padded_share"] < 0.1


def test_processes_and_a_single_one_make_the_same_rows(module, write, monkeypatch, tmp_path):
    path = write(pairs(100))
    monkeypatch.setattr(text_files, "unit_bytes", lambda _: 2048)
    batches = []
    for cores in (1, 2):
        monkeypatch.setattr(tokenization, "available_cores", lambda cores=cores: cores)
        data = ready(module(path=path, cache_dir=str(tmp_path / f"cache-{cores}")))
        assert len(data._train[0][1]) > 3
        batches.append(list(data.train_dataloader()))
    for one, two in zip(*batches, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_questions_of_one_wording_stay_on_one_side(module):
    records = [{"question": f"{i % 10}", "answer": f"{i}"} for i in range(60)]
    data = ready(module(records, val_share=0.2, batch_size=1))
    val = {int(text.removesuffix("<|im_end|>")) % 10 for text in replies(data, data.val_dataloader())}
    train = {int(text.removesuffix("<|im_end|>")) % 10 for text in replies(data, data.train_dataloader())}
    assert val and train and not val & train


def test_sources_are_mixed_and_have_columns_of_their_own(module, write):
    alpaca = [{"instruction": f"Do {i}", "input": "", "output": "done"} for i in range(50)]
    other = [{"frage": f"{i}?", "antwort": "ja"} for i in range(50)]
    sources = [
        RecordSource(write(alpaca, "a.jsonl"), weight=1),
        RecordSource(write(other, "b.jsonl"), weight=1, columns={"question": "frage", "answer": "antwort"}),
    ]
    data = ready(module(sources=sources, val_share=0.0, batch_size=1))
    trained = replies(data, data.train_dataloader())
    assert {"done<|im_end|>", "ja<|im_end|>"} == set(trained)


BAD = {
    "broken JSON": "{\n",
    "a record must be an object": "[1, 2]\n",
    "spells the special token": json.dumps({"question": "<|im_start|>", "answer": "b"}) + "\n",
    "NUL": json.dumps({"question": "a\0b", "answer": "b"}) + "\n",
    "question": json.dumps({"question": ["a", ["b"]], "answer": "b"}) + "\n",
    "answer": json.dumps({"question": "a", "answer": "  "}) + "\n",
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_stops_by_file_and_line_or_is_counted(module, write, reason):
    path = Path(write(pairs(60)))
    path.write_text(path.read_text() + BAD[reason])
    with pytest.raises(DataError, match=r"data\.jsonl:61: .*" + reason):
        module(path=str(path)).prepare_data()
    with pytest.warns(UserWarning, match=r"1 bad records were skipped.*data\.jsonl:61"):
        data = ready(module(path=str(path), on_bad_record="skip"))
    assert sum(statistics["num_documents"] for statistics in data.statistics.values()) == 60


def test_a_very_long_answer_and_lone_surrogates_are_kept(module):
    odd = [
        {"question": "long", "answer": "word " * 24_000},
        {"question": "surrogate \ud83d", "answer": "\udc00 end"},
    ]
    data = ready(module(pairs(20) + odd, val_share=0.0, too_long="split", batch_size=1))
    trained = "".join(replies(data, data.train_dataloader()))
    assert 24_000 * 0.98 < trained.count("word") < 24_000 and "� end" in trained
    dropped = ready(module(pairs(20) + odd, val_share=0.0))
    assert dropped.statistics["train"]["num_dropped"] == dropped.statistics["train"]["num_too_long"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": None}, "tokenizer: none is named"),
        ({"template": "no-such"}, "template: 'no-such' is neither a file"),
        ({"columns": {"question": "frage"}}, "frage"),
        ({"path": "python_docs"}, "text"),
        ({"seq_len": 4}, "seq_len: all 99 documents"),
    ],
)
def test_a_mistake_is_named(module, settings, words):
    with pytest.raises(DataError, match=words):
        module(**settings).prepare_data()


def test_prompts_end_where_the_reply_begins(module):
    data = ready(module(val_share=0.1))
    batch = next(iter(data.predict_dataloader()))
    for ids, mask in zip(batch["prompt_ids"], batch["attention_mask"], strict=True):
        assert data.tokenizer.decode(ids[mask.bool()]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert data.example_prompts(2)[0] == batch["prompt_ids"][0][batch["attention_mask"][0].bool()].tolist()


def test_the_template_and_the_end_of_a_turn_go_with_the_tokenizer(module, tmp_path):
    data = ready(module(template="chatml"))
    data.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.eos_token == "<|im_end|>"
    talk = [{"role": "user", "content": "a"}]
    written = loaded.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert written == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


NAMED = {"default": TEMPLATES["smollm2"], "tool_use": TEMPLATES["smollm2"] + "{{ tools }}", "rag": "{{ documents }}"}


@pytest.mark.parametrize(
    ("names", "template", "kept"),
    [
        (["default", "tool_use", "rag"], None, ["default", "tool_use", "rag"]),
        (["default", "rag"], None, ["default", "rag"]),
        (["tool_use"], None, ["default", "tool_use"]),  # without one of its own, ChatML by its tokens
        (["default", "tool_use", "rag"], "chatml", None),
    ],
)
def test_templates_of_other_names_go_with_the_tokenizer(module, tmp_path, names, template, kept):
    tokenizer = chat_tokenizer("smollm2", {name: NAMED[name] for name in names})
    tokenizer.save_pretrained(tmp_path / "named")
    data = module(tokenizer=str(tmp_path / "named"), template=template)
    data.chat_tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    assert (sorted(loaded) if isinstance(loaded, dict) else None) == (kept and sorted(kept))
    if kept is not None:
        assert all(loaded[name] == NAMED[name] for name in names)
    talk = [{"role": "user", "content": "a"}]
    assert "<|im_start|>user" in data.chat_tokenizer.apply_chat_template(talk, tokenize=False)


def test_another_template_makes_other_tokens(module):
    own, other = (ready(module(template=template)) for template in (None, "chatml"))
    assert own.statistics["train"]["num_tokens"] > other.statistics["train"]["num_tokens"]


def test_preview(module, monkeypatch):
    data = ready(module(pairs(20) + pairs(5), val_share=0.0))
    lines = list(data.preview(2))
    assert lines[1] == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n0? <|im_end|>\n<|im_start|>assistant\n⟦0<|im_end|>⟧\n"
    )
    assert any("25, 5 of them copies" in line for line in lines)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\033[32m0<|im_end|>\033[0m" in list(data.preview(1))[1]
    piece = data.make_prompts(data._train).documents[0]
    assert marked(piece, data.tokenizer, colours=False) == lines[1]


OPENINGS = {
    "smollm2": "<|im_start|>assistant\n",
    "qwen3": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("family", OPENINGS)
@pytest.mark.parametrize("settings", [{"reasoning": "mask"}, {"reasoning": "train"}, {"turns": "all"}], ids=str)
def test_a_prompt_ends_where_the_assistants_turn_begins(module, tmp_path, family, settings):
    """The thoughts before the last reply are the model's own to find, whether they are trained or not."""
    talks = [
        [
            {"role": "user", "content": f"{i}? {SPANISH[: i % 60]}"},
            {"role": "assistant", "content": "Dos.", "reasoning": "Pienso."},
            {"role": "user", "content": "¿Más?"},
            {"role": "assistant", "content": f"Cuatro {EMOJI}", "reasoning": f"Pienso otra vez. {EMOJI}"},
        ][: 4 if i % 2 else 2]
        for i in range(12)
    ]
    chat_tokenizer(family).save_pretrained(tmp_path / family)
    records = [{"messages": talk} for talk in talks]
    data = ready(
        module(records, tokenizer=str(tmp_path / family), val_share=0.9, batch_size=64, seq_len=1024, **settings)
    )
    (batch,) = data.predict_dataloader()
    rows = zip(batch["prompt_ids"], batch["attention_mask"], strict=True)
    prompts = [data.tokenizer.decode(ids[mask.bool()]) for ids, mask in rows]
    assert len(prompts) >= 10 and all(prompt.endswith(OPENINGS[family]) for prompt in prompts), prompts
    assert all("otra vez" not in prompt and "Cuatro" not in prompt for prompt in prompts)
    assert any("Dos." in prompt and "¿Más?" in prompt for prompt in prompts)


@pytest.mark.parametrize("val_share", [0.0, None])
def test_where_no_conversation_is_left_it_is_said_why(module, val_share):
    bad = [{"question": "a", "answer": " "}, {"question": "<|im_end|>", "answer": "b"}]
    with pytest.raises(
        DataError, match=r"there is nothing to train on in .*: 2 bad records were skipped; the first: .*:1: "
    ):
        ready(module(bad, on_bad_record="skip", val_share=val_share))
