"""The proof finds what it is there for: faults that loading does not."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_lightning.errors import UserError
from llm_lightning.export.errors import RefusedError
from llm_lightning.export.proof.asking import ask
from llm_lightning.export.proof.limits import EXACT, HALF
from llm_lightning.export.proof.questions import DECOMPOSED, DEFAULT_TEXT, questions
from llm_lightning.export.proof.verdict import compare
from llm_lightning.export.source import read_source
from llm_lightning.export.targets import TARGETS, Wanted

SCRIPT = "transformers_answers"


@pytest.fixture(scope="module")
def asked(models):
    found = questions(read_source(models("llama")).tokenizer, DEFAULT_TEXT.read_text()[:1500], 400, False)
    return found | {"num_new": 8}


@pytest.fixture
def trained(models, asked, ask_here, tmp_path):
    return ask_here(SCRIPT, asked | {"path": str(models("llama")), "base": None}, tmp_path / "trained")


def judged(ask, asked, trained, tmp_path, limits=HALF, **place):
    its = asked | {name: trained.said[name] for name in ("prompts", "windows")} | {"base": None} | place
    return compare(trained, ask(SCRIPT, its, tmp_path / "answers"), asked["texts"], limits)


def changed(folder, change):
    """The folder with other weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def transposed(weights):
    name = "model.layers.1.self_attn.o_proj.weight"
    weights[name] = weights[name].T.clone()


def swapped(weights):
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
    weights[names[0]], weights[names[1]] = weights[names[1]].clone(), weights[names[0]].clone()


def lost(weights):
    del weights["model.layers.1.input_layernorm.weight"]


def not_a_number(weights):
    weights["model.norm.weight"][0] = float("nan")


def other_tokenizer(folder):
    """Two tokens of one piece in each other's place: ids and texts both look right."""
    state = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["q"], vocabulary["x"] = vocabulary["x"], vocabulary["q"]
    (folder / "tokenizer.json").write_text(json.dumps(state))


def without_template(folder):
    (folder / "chat_template.jinja").unlink()


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", "assistant"))


def of_weights(change):
    return lambda folder: changed(folder, change)


FAULTS = {
    "a transposed weight": (of_weights(transposed), "KL by"),
    "two weights in each other's place": (of_weights(swapped), "KL by"),
    "a weight that is missing": (of_weights(lost), "KL by"),
    "a weight that is not a number": (of_weights(not_a_number), "KL by nan"),
    "a tokenizer with two tokens swapped": (other_tokenizer, "token ids differ for .* of .* texts"),
    "no chat template": (without_template, "the chat template is missing"),
    "another chat template": (other_template, "the chat template renders"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(models, asked, trained, ask_here, tmp_path, fault):
    plant, words = FAULTS[fault]
    folder = tmp_path / "faulty"
    shutil.copytree(models("llama"), folder)
    plant(folder)
    _, reasons = judged(ask_here, asked, trained, tmp_path, path=str(folder))
    assert any(re.match(words, reason) for reason in reasons), reasons


def test_rows_of_queries_in_the_wrong_order_are_found(models, asked, trained, ask_here, tmp_path, monkeypatch):
    from llm_lightning.export.gguf import target

    source = read_source(models("llama"))
    monkeypatch.setattr(target, "laid_out", lambda _, __, ___, weight: weight)
    (tmp_path / "out").mkdir()
    TARGETS["gguf"].write(source, "f32", tmp_path / "out")
    found, reasons = judged(ask_here, asked, trained, tmp_path, **TARGETS["gguf"].questions(tmp_path / "out"))
    assert found.same_ids == found.num_texts and any(reason.startswith("KL") for reason in reasons)


def test_the_same_model_passes_the_narrowest_limits_without_our_code(models, asked, trained, tmp_path):
    fresh = ask(SCRIPT, asked | {"path": str(models("llama")), "base": None}, tmp_path / "fresh")
    found, reasons = compare(trained, fresh, asked["texts"], EXACT)
    assert not reasons
    assert found.kl < 1e-9 and found.max_difference < 1e-4 and abs(found.perplexity_increase) < 1e-6
    assert found.same_written == found.num_written == 24
    assert not {"llm_lightning", "callbacks", "datamodules", "lightning"} & set(fresh.said["imported"])
    assert "transformers" in fresh.said["imported"]


def test_perplexity_is_that_of_the_windows(models, trained):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(models("llama"), dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for window in trained.said["windows"]:
            ids = torch.tensor([window])
            total += network(ids, labels=ids).loss.item() * (len(window) - 1)
            count += len(window) - 1
    assert trained.said["num_scored"] == count
    assert trained.said["loss"] == pytest.approx(total / count, rel=1e-5)


def test_what_cannot_be_loaded_is_refused_with_what_was_said(asked, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match="cannot be loaded and asked"):
        ask(SCRIPT, asked | {"path": str(tmp_path / "empty"), "base": None}, tmp_path / "answers")


def test_a_text_that_may_differ_does_not_count(asked, trained):
    other = json.loads(json.dumps(trained.said))
    other["ids"][asked["texts"].index(DECOMPOSED)] = [1]
    its = type(trained)(other, trained.logits)
    assert compare(trained, its, asked["texts"], EXACT)[1]
    assert not compare(trained, its, asked["texts"], EXACT, {DECOMPOSED: "why"})[1]


@pytest.mark.parametrize(("text", "words"), [("onx", "no target 'onx'"), ("gguf:q3", "gguf has no format 'q3'")])
def test_a_wrong_target_is_named(text, words):
    with pytest.raises(UserError, match=words):
        Wanted.parse(text)


def test_limits_below_zero_are_refused():
    with pytest.raises(UserError, match="--max_kl -1"):
        EXACT.with_given(-1.0, None)
