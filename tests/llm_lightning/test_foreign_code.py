"""Code that comes with a model's folder is neither run nor asked for on standard input, whoever reads the folder."""

import json

import pytest

from callbacks.quantization.request import load_network
from llm_lightning.models.loading.new_tokens import own_tokenizer
from llm_lightning.rewards.reward_model import RewardModel
from llm_lightning.rollouts.local_engine import LocalEngine

KINDS = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
READERS = {
    "reward": lambda path: RewardModel(path).check(),
    "reward's network": lambda path: RewardModel(path).model,
    "engine": lambda path: LocalEngine(path).check(),
    "engine's tokenizer": lambda path: LocalEngine(path).tokenizer,
    "new tokens": own_tokenizer,
    "quantized": lambda path: load_network(path, "cpu"),
}


@pytest.mark.parametrize("name", READERS)
def test_code_of_a_folder_is_not_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked: {asked}"))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    own = {"AutoTokenizer": ["own.Own", None]} | dict.fromkeys(KINDS, "own.Own")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": own}))
    try:
        assert READERS[name](str(tmp_path)) is None  # there is none that could be read
    except Exception as error:
        assert "trust_remote_code" in str(error) or "code" in str(error), error
    assert not (tmp_path / "ran").exists()
