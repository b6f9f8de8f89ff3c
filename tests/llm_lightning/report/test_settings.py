"""Settings in short, and side by side."""

import yaml

from llm_lightning.report.settings import MOST_SETTINGS, NOTHING, differing, flat, in_short, of_data, shown
from tests.llm_lightning.report.folders import CONFIG


def test_a_class_stands_under_the_name_of_its_setting():
    settings = flat(CONFIG)
    assert settings["model"] == "CausalPretraining" and settings["model.optimizer"] == "AdamW"
    assert settings["model.optimizer.lr"] == 0.001 and settings["model.optimizer.betas"] == [0.9, 0.95]
    assert flat({"trainer": {"callbacks": [{"class_path": "Samples", "init_args": {"max_new_tokens": 8}}]}}) == {
        "trainer.callbacks.0": "Samples",
        "trainer.callbacks.0.max_new_tokens": 8,
    }


def test_runs_differ_where_their_settings_do():
    one, two = flat(CONFIG), flat(CONFIG) | {"model.optimizer.lr": 0.01, "model.peft": "LoraConfig", "resume": False}
    two["trainer.default_root_dir"] = "elsewhere"
    assert differing([one, two]) == [("model.optimizer.lr", ["0.001", "0.01"]), ("model.peft", [NOTHING, "LoraConfig"])]
    assert differing([one, one]) == []


def test_the_run_in_short():
    rows = dict(in_short(flat(CONFIG)))
    assert rows["network"] == "LlamaConfig, hidden_size 64" and rows["optimizer"] == "AdamW, lr 0.001"
    assert rows["data"] == "TextDataModule, texts.jsonl" and "adapter" not in rows
    assert of_data(flat(CONFIG)) == [("path", "texts.jsonl"), ("seq_len", "64")]
    assert in_short({}) == []


def test_a_value_is_as_long_as_a_table_can_hold():
    assert len(shown("x" * 10_000)) < 600 and shown([True, None, 0.1]) == f"true, {NOTHING}, 0.1"


def test_settings_that_hold_themselves_a_thousandfold():
    bomb = "a: &a [{x: 1}, {x: 2}]\n" + "".join(
        f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert len(flat(yaml.safe_load(bomb))) <= MOST_SETTINGS
    deep: list = []
    deep.append({"x": deep})
    assert len(flat({"deep": deep})) <= MOST_SETTINGS
