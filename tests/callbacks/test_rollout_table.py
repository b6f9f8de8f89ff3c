import json

import pytest

from callbacks import CallbackError, RolloutTable
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer

ROWS = [{"prompt": "é", "continuation": str(i), "rewards": {"a": 1.0}} for i in range(9)]


class TinyPolicy(TinyModule):
    def __init__(self, samples=ROWS):
        super().__init__()
        self.samples = samples


def fit(folder, table, module=None, **settings):
    trainer = tiny_trainer(folder, callbacks=[table], **settings)
    trainer.fit(module or TinyPolicy(), TinyData())


def written(folder):
    return sorted(path.name for path in (folder / "samples").glob("*")) if (folder / "samples").exists() else []


def test_the_first_step_and_every_validation(tmp_path):
    fit(tmp_path, RolloutTable(num_samples=4), max_steps=6, val_check_interval=3, num_sanity_val_steps=1)
    assert written(tmp_path) == ["rollouts-000001.jsonl", "rollouts-000003.jsonl", "rollouts-000006.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "samples/rollouts-000003.jsonl").read_text().splitlines()]
    assert rows == ROWS[:4]


def test_rows_of_any_values_are_json(tmp_path):
    row = {"prompt": [{"role": "user", "content": b"why?"}], "continuation": "\ud83d", "rewards": {"a": float("nan")}}
    fit(tmp_path, RolloutTable(), TinyPolicy([row]), max_steps=1)
    said = json.loads((tmp_path / "samples/rollouts-000001.jsonl").read_text())
    assert said == {"prompt": [{"role": "user", "content": "why?"}], "continuation": "\ud83d", "rewards": {"a": None}}


def test_every_so_many_steps_instead(tmp_path):
    fit(tmp_path, RolloutTable(every_n_steps=3), max_steps=6, val_check_interval=1)
    assert written(tmp_path) == ["rollouts-000003.jsonl", "rollouts-000006.jsonl"]


def test_a_module_without_samples_leaves_nothing(tmp_path):
    fit(tmp_path, RolloutTable(), TinyModule(), max_steps=1)
    assert written(tmp_path) == []


def test_a_full_disk_is_a_warning(tmp_path):
    (tmp_path / "samples").write_text("in the way")
    with pytest.warns(UserWarning, match="No rollouts written at step 1"):
        fit(tmp_path, RolloutTable(), max_steps=1)


def test_numbers_below_one_are_refused():
    with pytest.raises(CallbackError, match=r"RolloutTable\.every_n_steps: 0 is below 1"):
        RolloutTable(every_n_steps=0)
