import json
from types import SimpleNamespace

import pytest

from callbacks import CallbackError, RolloutTable


def trainer(folder, step):
    return SimpleNamespace(
        global_step=step, default_root_dir=folder, is_global_zero=True, fast_dev_run=False, loggers=[],
        sanity_checking=False, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip


MODULE = SimpleNamespace(samples=[{"prompt": "é", "continuation": str(i), "rewards": {"a": 1.0}} for i in range(9)])


def written(folder):
    return sorted(path.name for path in (folder / "samples").glob("*")) if (folder / "samples").exists() else []


def test_the_first_step_and_every_validation(tmp_path):
    table = RolloutTable(num_samples=4)
    for step in (1, 2):
        table.on_train_batch_end(trainer(tmp_path, step), MODULE)
    table.on_validation_end(trainer(tmp_path, 2), MODULE)
    assert written(tmp_path) == ["rollouts-000001.jsonl", "rollouts-000002.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "samples/rollouts-000002.jsonl").read_text().splitlines()]
    assert rows == MODULE.samples[:4]


def test_rows_of_any_values_are_json(tmp_path):
    row = {"prompt": [{"role": "user", "content": b"why?"}], "continuation": "\ud83d", "rewards": {"a": float("nan")}}
    RolloutTable().on_train_batch_end(trainer(tmp_path, 1), SimpleNamespace(samples=[row]))
    said = json.loads((tmp_path / "samples/rollouts-000001.jsonl").read_text())
    assert said == {"prompt": [{"role": "user", "content": "why?"}], "continuation": "\ud83d", "rewards": {"a": None}}


def test_every_so_many_steps_instead(tmp_path):
    table = RolloutTable(every_n_steps=3)
    for step in range(1, 7):
        table.on_train_batch_end(trainer(tmp_path, step), MODULE)
        table.on_validation_end(trainer(tmp_path, step), MODULE)
    assert written(tmp_path) == ["rollouts-000003.jsonl", "rollouts-000006.jsonl"]


def test_a_module_without_samples_leaves_nothing(tmp_path):
    RolloutTable().on_train_batch_end(trainer(tmp_path, 1), SimpleNamespace())
    assert written(tmp_path) == []


def test_a_full_disk_is_a_warning(tmp_path):
    (tmp_path / "samples").write_text("in the way")
    with pytest.warns(UserWarning, match="No rollouts written at step 1"):
        RolloutTable().on_train_batch_end(trainer(tmp_path, 1), MODULE)


def test_numbers_below_one_are_refused():
    with pytest.raises(CallbackError, match=r"RolloutTable\.every_n_steps: 0 is below 1"):
        RolloutTable(every_n_steps=0)
