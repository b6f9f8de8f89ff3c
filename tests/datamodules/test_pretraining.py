import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from datamodules import DataError, TextDataModule, TextSource
from datamodules.storage.statistics import left_out


@pytest.fixture
def module(write_jsonl, cache, texts):
    """Makes a DataModule over the texts, with small numbers."""
    path = write_jsonl(texts)

    def make(**settings) -> TextDataModule:
        defaults = {"path": path, "vocab_size": 300, "seq_len": 64, "batch_size": 4, "cache_dir": str(cache)}
        given = {**defaults, **settings}
        return TextDataModule(**{name: value for name, value in given.items() if value is not None})

    return make


def ready(data: TextDataModule) -> TextDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def test_an_epoch_holds_every_training_token_once_and_validation_the_others(module, texts):
    data = ready(module(val_share=0.1, seq_len=256, batch_size=1))
    tokenizer = data.tokenizer

    def documents(loader) -> set[str]:
        rows: list[list[int]] = []
        for batch in loader:
            for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
                starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
                for begin, end in pairwise(starts):
                    if (labels[begin:end] != -100).any():
                        assert labels[begin] == -100
                        assert torch.equal(labels[begin + 1 : end], ids[begin + 1 : end])
                        rows.append(ids[begin:end].tolist())
        return {tokenizer.decode(ids[:-1]) for ids in rows if ids[-1] == tokenizer.eos_token_id and len(ids) < 256}

    short = [text for text in texts if len(tokenizer(text).input_ids) < 255]
    train, val = documents(data.train_dataloader()), documents(data.val_dataloader())
    assert len(short) > 50 and set(short) <= train | val
    assert not train & val & set(short) and val & set(short)
    assert data.statistics["train"]["num_documents"] + data.statistics["val"]["num_documents"] == 240
    assert data.statistics["val"]["num_documents"] == 24
    assert data.statistics["train"]["padded_share"] < 0.02


def test_validation_path_weights_and_prompts(module, write_jsonl, texts):
    a, b = write_jsonl(texts[:100], "a.jsonl"), write_jsonl(texts[100:200], "b.jsonl")
    val = write_jsonl(texts[200:], "val.jsonl")
    data = ready(
        module(path=None, sources=[TextSource(a, weight=1), TextSource(b, weight=3)], val_path=val, prompt_len=8)
    )
    assert data.statistics["train"]["num_documents"] == 200 and data.statistics["val"]["num_documents"] == 40
    prompts = list(data.predict_dataloader())
    assert [len(batch["prompt_ids"]) for batch in prompts] == [4] * 10
    assert prompts[0]["prompt_ids"].shape[1] == 8
    first = prompts[0]["prompt_ids"][0][prompts[0]["attention_mask"][0].bool()]
    assert texts[200].startswith(data.tokenizer.decode(first))
    counts = data.train_dataloader().order.counts
    assert abs(counts[0] / counts.sum() - 0.25) < 0.01
    assert data.test_dataloader().order.num_rows == data.statistics["val"]["num_rows"]


def test_what_validates_may_have_a_text_column_of_its_own(module, write_jsonl, texts):
    english = write_jsonl(texts[:40], "train.jsonl", column="body")
    for column, own in (("body", None), ("text", None), ("inhalt", None), ("text", "text")):
        data = ready(
            module(path=english, text_column="body", val_text_column=own,
                   val_path=write_jsonl(texts[200:220], f"{column}.jsonl", column=column))
        )  # fmt: skip
        assert data.statistics["val"]["num_documents"] == 20
        prompt = next(iter(data.predict_dataloader()))["prompt_ids"][0]
        assert data.tokenizer.decode(prompt).removeprefix("<|endoftext|>")[:20] == texts[200][:20]
    with pytest.raises(DataError, match=r"text_column: .*inhalt\.jsonl' has no column 'body'; it has: inhalt, id"):
        module(
            path=english, text_column="body", val_path=f"{english[:-11]}inhalt.jsonl", val_text_column="body"
        ).check()
    (Path(english).parent / "two.jsonl").write_text('{"titel": "a", "inhalt": "b"}\n')
    with pytest.raises(DataError, match=r"Name the one to read with val_text_column"):
        module(path=english, text_column="body", val_path=f"{english[:-11]}two.jsonl").check()
    with pytest.raises(DataError, match="val_text_column: it is that of val_path, which is not given"):
        module(path=english, text_column="body", val_text_column="text").check()


def test_without_validation_there_is_no_loader(module):
    data = ready(module(val_share=0.0))
    assert data.val_dataloader() == [] and data.predict_dataloader() == []
    assert "val" not in data.statistics


def test_a_second_setup_reads_the_cache_and_writes_nothing(module, cache):
    first = ready(module())
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.name != ".lock"}
    second = ready(module())
    assert files == {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.name != ".lock"
    }
    a, b = next(iter(first.train_dataloader())), next(iter(second.train_dataloader()))
    assert torch.equal(a["input_ids"], b["input_ids"])
    other = next(iter(ready(module(seed=1)).train_dataloader()))
    assert not torch.equal(a["input_ids"], other["input_ids"])


MISTAKES = {
    "path and sources: give one of them (neither is given)": {"path": None},
    "path and sources: give one of them (both are given)": {"sources": [TextSource("python_docs")]},
    "path: 'missing/data.txt' does not exist": {"path": "missing/data.txt"},
    "path: 'python_dogs' does not exist": {"path": "python_dogs"},
    "embedded corpora: python_docs": {"path": "python_dogs"},
    "'no-one/nothing' is not here, and the Hugging Face hub cannot be reached": {"path": "no-one/nothing"},
    "text_column: ": {"text_column": "body"},
    "has no column 'body'; it has: text, id": {"text_column": "body"},
    "seq_len: it must be at least 2, not 1": {"seq_len": 1},
    "batch_size: it must be at least 1, not 0": {"batch_size": 0},
    "vocab_size: it must be at least 260, not 200": {"vocab_size": 200},
    "tokenizer and vocab_size": {"tokenizer": "gpt2"},
    "val_path and val_share": {"val_path": "x.txt", "val_share": 0.1},
    "val_share: it must be at least 0 and below 1": {"val_share": 1.0},
    "give a weight to all of them or to none": {"path": None, "sources": [TextSource("a", 1), TextSource("b")]},
    "name: it chooses from a hub data set": {"path": None, "sources": [TextSource(".", name="en")]},
    "a weight must be above 0": {"path": None, "sources": [TextSource("a", 0)]},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named_before_any_work(message, module, cache):
    with pytest.raises(DataError) as error:
        module(**MISTAKES[message]).check()
    assert message in str(error.value)
    assert not cache.exists()


CONTENTS = {
    "is empty": ("a.txt", b""),
    "holds no files": ("folder/", b""),
    "holds none of .txt, .jsonl": ("a.docx", b"x"),
    "it has: title, body. Name the one to read": ("a.jsonl", b'{"title": "x", "body": "y"}\n'),
    "a.jsonl:2: broken JSON": ("a.jsonl", b'{"text": "x"}\n{"text": \n'),
    "a.txt:2: byte 0xf1 is not UTF-8": ("a.txt", "uno\nEspaña".encode("latin-1")),
    "not a readable parquet file": ("a.parquet", b"text"),
}


@pytest.mark.parametrize("message", CONTENTS)
def test_bad_content_is_named_before_any_work(message, module, cache, tmp_path):
    name, content = CONTENTS[message]
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        module(path=str(path)).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not cache.exists()


def test_a_single_document_cannot_be_split(module, tmp_path):
    (tmp_path / "one.txt").write_text("just one document " * 99)
    with pytest.raises(DataError, match=r"val_share: all of .*one\.txt"):
        ready(module(path=str(tmp_path / "one.txt")))
    assert ready(module(path=str(tmp_path / "one.txt"), val_share=0.0)).statistics["train"]["num_documents"] == 1


def test_blank_text_is_no_text(module, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 9)
    with pytest.raises(DataError, match=r"there is nothing to train on in .*: left out: 9 empty texts"):
        ready(module(path=str(tmp_path / "a.jsonl")))


def test_importing_the_package_imports_no_heavy_library():
    # A tokenizing process, of which there is one for each core, imports the worker and one of the encoders.
    encoders = ", ".join(f"datamodules.encoding.{name}" for name in ("worker", "texts", "conversations", "pairs"))
    code = f"import sys, datamodules, {encoders}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "transformers", "datasets", "pyarrow"} & set(modules)


def test_yaml_settings_reach_the_module(write_jsonl, texts):
    """jsonargparse, on which LightningCLI stands, takes every parameter from the signature."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(TextDataModule, "data")
    config = {
        "data": {"sources": [{"path": "a.txt", "weight": 2}, {"path": "b", "name": "x"}], "on_bad_record": "skip"}
    }
    data = parser.instantiate_classes(parser.parse_string(json.dumps(config))).data
    assert data.sources == [TextSource("a.txt", weight=2), TextSource("b", name="x")]
    assert data.on_bad_record == "skip" and data.seq_len == 1024


def test_the_cache_can_be_named_by_the_environment(monkeypatch, tmp_path):
    from datamodules.cache import cache_root

    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "here"))
    assert cache_root(None) == tmp_path / "here"
    assert cache_root(str(tmp_path / "there")) == tmp_path / "there"
    monkeypatch.delenv("LLM_LIGHTNING_CACHE")
    assert cache_root(None) == Path.home() / ".cache/llm-lightning"


def test_skipped_records_are_reported(module, write_jsonl, texts):
    path = Path(write_jsonl(texts[:50], "bad.jsonl"))
    path.write_text(path.read_text() + "{\n{\n")
    with pytest.warns(UserWarning, match=r"2 bad records were skipped; the first: .*bad\.jsonl:51: broken JSON"):
        ready(module(path=str(path), on_bad_record="skip"))


def test_empty_texts_are_left_out_and_counted(module, write_jsonl, texts):
    data = ready(module(path=write_jsonl([*texts[:20], "", ""])))
    assert left_out(shard for _, shards in data._train for shard in shards) == {"empty texts": 2}


def test_one_odd_record_does_not_decide_which_column_is_read(module, tmp_path, texts):
    odd = [{"content": [{"type": "text"}], "name": "x"}, {"title": "y", "content": "short"}]
    lines = [*odd, *({"content": text, "id": 3} for text in texts)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ready(module(path=str(tmp_path / "odd.jsonl"), on_bad_record="skip"))
    assert sum(statistics["num_documents"] for statistics in data.statistics.values()) == len(texts) + 1


def test_packing_is_logged(module, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    from tests.datamodules.recorder import Recorder

    logger = CSVLogger(tmp_path)
    settings = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=logger, limit_val_batches=0, **settings)
    data = module()
    trainer.fit(Recorder(None, None), data)
    header, values = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[:2]
    logged = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(logged["data/padded_share"]) == pytest.approx(data.statistics["train"]["padded_share"])


@pytest.mark.parametrize(("num_texts", "batch_size"), [(7, 4), (3, 4), (8, 4), (5, 2)])
def test_an_epoch_trains_every_row_also_those_left_over(num_texts, batch_size, module, write_jsonl):
    texts = [f"{'abcdefgh'[i]}" * 60 for i in range(num_texts)]
    settings = {"val_share": 0.0, "batch_size": batch_size, "vocab_size": 260, "seq_len": 64}
    data = ready(module(path=write_jsonl(texts, "few.jsonl"), **settings))
    batches = list(data.train_dataloader())
    trained = [
        (ids, labels) for batch in batches for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    real = [data.tokenizer.decode(ids[:60]) for ids, labels in trained if (labels != -100).any()]
    assert sorted(real) == texts and len(batches) == -(-num_texts // batch_size)


def test_a_share_that_copies_exceed_is_said(module, write_jsonl):
    path = write_jsonl(["the same text"] * 40 + ["the other text"] * 40, "copies.jsonl")
    with pytest.warns(UserWarning, match=r"val_share=0\.05: 40 of 80 validate \(50\.0%\)"):
        ready(module(path=path, val_share=0.05))


def test_batches_of_validation_have_one_source_each(tmp_path):
    paths = [tmp_path / f"{name}.jsonl" for name in ("letters", "digits")]
    for path, word in zip(paths, ("abc ", "123 "), strict=True):
        path.write_text("".join(json.dumps({"text": word * (20 + i)}) + "\n" for i in range(60)))
    sources = [TextSource(str(path), weight=1) for path in paths]
    data = TextDataModule(
        sources=sources, seq_len=64, batch_size=4, val_share=0.3, vocab_size=300, cache_dir=str(tmp_path)
    )
    data.prepare_data()
    data.setup("fit")
    assert data.val_source_names == ["letters", "digits"]
    seen, num_rows = [], 0
    for batch in data.val_dataloader():
        text = data.tokenizer.decode(batch["input_ids"][batch["labels"] >= 0])
        assert ("a" in text, "1" in text) == ((True, False), (False, True))[batch["source_number"]]
        seen.append(batch["source_number"])
        num_rows += int((batch["labels"] >= 0).any(dim=1).sum())
    assert seen == sorted(seen) and set(seen) == {0, 1}
    assert num_rows == data.statistics["val"]["num_rows"]
    data.sources = None
    assert data.val_source_names == []
