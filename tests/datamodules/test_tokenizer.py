import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from datamodules.encoding import tokenizer as tokenizer_module
from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenization import encoder_digest
from datamodules.encoding.tokenizer import framing, load_tokenizer, train, trained_tokenizer
from datamodules.errors import DataError
from datamodules.records.text_source import TextSource, text_units
from tests.datamodules.conftest import EMOJI, SPANISH


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train(iter([SPANISH, EMOJI, "the cat sat on the mat " * 9] * 3), vocab_size=400)


def digest(tokenizer: PreTrainedTokenizerFast) -> str:
    return encoder_digest(TextEncoder.of(tokenizer))


@pytest.mark.parametrize("text", [SPANISH, EMOJI, "nul \x00 and \t tab\r\n", "new words: zyzzyva ∮"])
def test_a_trained_tokenizer_gives_back_any_text_and_ends_it(trained, text):
    ids = TextEncoder.of(trained).encode([text])[0].tolist()
    assert ids[-1] == trained.eos_token_id
    assert trained.decode(ids[:-1]) == text


def test_a_text_that_spells_a_special_token_stays_text(trained):
    ids = TextEncoder.of(trained).encode(["a <|endoftext|> b <|im_start|>"])[0].tolist()
    assert ids.count(trained.eos_token_id) == 1
    assert trained.convert_tokens_to_ids("<|im_start|>") not in ids


def test_special_tokens_are_there_from_the_beginning_and_survive_saving(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    assert loaded.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2, 3]
    assert digest(loaded) == digest(trained)


def test_a_convention_of_bos_and_eos_is_kept_and_doubled_nowhere():
    def with_template(single: str) -> PreTrainedTokenizerFast:
        bare = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
        bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bare.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
        return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")

    for single in ("<s> $A", "<s> $A </s>"):
        assert TextEncoder.of(with_template(single)).encode(["aa", "<s>a"])[0].tolist() == [1, 0, 0, 2]
    assert TextEncoder.of(with_template("$A")).encode(["a"])[0].tolist() == [0, 2]


def test_training_is_deterministic_between_processes(tmp_path, write_jsonl, texts):
    path = write_jsonl(texts)
    code = f"""
from datamodules.records.text_source import TextSource, text_units
from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenization import encoder_digest
from datamodules.encoding.tokenizer import trained_tokenizer
from pathlib import Path
import sys
root = Path(sys.argv[1])
tokenizer = trained_tokenizer(text_units(TextSource({path!r}), root), 350, root, "stop")
print(encoder_digest(TextEncoder.of(tokenizer)))
"""
    runs = [[sys.executable, "-c", code, str(tmp_path / name)] for name in "ab"]
    digests = {subprocess.run(run, capture_output=True, text=True, check=True).stdout for run in runs}
    assert len(digests) == 1


def test_a_big_corpus_is_sampled_evenly(write_jsonl, cache, texts, monkeypatch):
    units = [
        unit
        for i in range(4)
        for unit in text_units(TextSource(write_jsonl(texts[i * 9 : i * 9 + 9], f"{i}.jsonl")), cache)
    ]
    monkeypatch.setattr(tokenizer_module, "SAMPLE_CHARACTERS", 1000)
    sampled = list(tokenizer_module.sample(units, "stop"))
    assert sum(map(len, sampled)) == 1000
    assert {text.split(".")[0] for text in sampled} >= {"Document 0", "Document 9", "Document 18", "Document 27"}


def test_a_trained_tokenizer_is_kept(write_jsonl, cache, texts):
    units = text_units(TextSource(write_jsonl(texts)), cache)
    first = trained_tokenizer(units, 300, cache, "stop")
    files = {path: path.stat().st_mtime_ns for path in (cache / "tokenizers").rglob("*.json")}
    assert digest(trained_tokenizer(units, 300, cache, "stop")) == digest(first)
    assert files == {path: path.stat().st_mtime_ns for path in (cache / "tokenizers").rglob("*.json")}
    assert digest(trained_tokenizer(units, 301, cache, "stop")) != digest(first)


@pytest.mark.parametrize("name", ["nowhere/at_all", "missing.gguf"])
def test_a_missing_tokenizer_is_named(name):
    with pytest.raises(DataError, match=name):
        load_tokenizer(name)


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(DataError, match="no EOS token"):
        framing(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))))


CODE = {"auto_map": {"AutoTokenizer": ["own.Own", None]}}


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json", "both"])
def test_code_of_a_tokenizer_is_neither_run_nor_asked_for(place, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked: {asked}"))
    train(iter(["some text"]), 270).save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own:\n    pass\n")
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    own = {} if place == "config.json" else CODE
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own"} | ({} if place == config.name else CODE)))
    config.write_text(json.dumps(settings | own))
    assert load_tokenizer(str(tmp_path))("some text").input_ids  # its tokenizer.json says all
    config.write_text(json.dumps(settings | own | {"tokenizer_class": "Own"}))
    (tmp_path / "tokenizer.json").unlink()
    reason = "made by code that comes with it .* never run; save it with" if own else "is no folder with a tokenizer"
    with pytest.raises(DataError, match=reason):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()
