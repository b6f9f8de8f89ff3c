"""The callback `Evaluation`: the same tasks in the middle of training, which goes on as if nothing had been asked."""

import csv
import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from callbacks import Asked, CallbackError, Evaluation
from llm_lightning.commands.evaluate import run as evaluate
from llm_lightning.evaluation.results import find_evaluations, read_evaluation
from tests.command_line import CONFIG
from tests.config_files import part
from tests.llm_lightning.evaluation.small_model import WRITTEN, questions, write_rows, write_task
from tests.wandb_logs import history, read

NAMES = ("train/loss", "train/grad_norm", "val/loss", "tokens")


def with_evaluation(folder: Path, **when) -> str:
    """The small run's YAML with three tasks asked in it."""
    write_rows(folder / "test.jsonl", questions(6))
    trained = json.loads((folder / "texts.jsonl").read_text().splitlines()[0])["text"]
    lines = "".join(f"Return line {number} of the items.\n" for number in range(40))
    (folder / "text.txt").write_text(f"{lines}{trained[:400]}\n")
    write_task(folder, "written", folder / "test.jsonl", **WRITTEN | {"generation_kwargs": {"max_gen_toks": 8}})
    config = yaml.safe_load(CONFIG)
    asked = {
        "tasks": ["local_multiple_choice", "local_text", "written.yaml"],
        "data": {"local_multiple_choice": "test.jsonl", "local_text": "text.txt"},
        "limit": 5,
        "contamination": True,
    }
    config["trainer"]["callbacks"].append(part("Evaluation", asked=asked, **when))
    (folder / "asking.yaml").write_text(yaml.safe_dump(config))
    return "asking.yaml"


def metrics(folder: Path, names) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open() as file:
        return [tuple(row.get(name) or "" for name in names) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_scores_stand_beside_the_loss_and_training_goes_on_unchanged(fresh_run, folder, monkeypatch):
    code, output = fresh_run("fit", "--config", "tiny.yaml", "--trainer.default_root_dir=plain")
    assert code == 0, output
    tracked = ("--config", "logger/wandb", "--trainer.logger.init_args.project=small")
    config = with_evaluation(folder, every_n_steps=10)
    code, output = fresh_run("fit", "--config", config, *tracked, env={"WANDB_MODE": "offline"})
    assert code == 0 and "W&B failed" not in output, output
    assert metrics(folder / "run", NAMES) == metrics(folder / "plain", NAMES)
    found = find_evaluations(folder / "run")
    assert [place.name for place in found] == ["step=10", "step=20", "step=24"]
    scored = ["tokens", "eval/local_text/bits_per_byte", "eval/local_multiple_choice/acc", "eval/written/exact_match"]
    rows = [row for row in metrics(folder / "run", scored) if row[1]]
    assert len(rows) == 3
    evaluations = [read_evaluation(place) for place in found]
    for row, evaluation in zip(rows, evaluations, strict=True):
        (bits,) = [s for s in evaluation.tasks["local_text"]["scores"] if s["metric"] == "bits_per_byte"]
        assert float(row[1]) == pytest.approx(bits["value"], rel=1e-3)
        assert evaluation.tokens == int(float(row[0]))
        assert evaluation.tasks["local_multiple_choice"]["num_items"] == 5
        assert evaluation.tasks["local_multiple_choice"]["too_short"] == 5
        assert evaluation.tasks["local_text"]["contaminated"] == 1
    assert [evaluation.step for evaluation in evaluations] == [10, 20, 24]
    assert float(rows[0][1]) > float(rows[-1][1])  # it learns
    assert "local_text" in (folder / "run" / "report.html").read_text()
    check_tracked(folder / "run", rows, evaluations)

    # Afterwards the folder that the run left has the same scores.
    monkeypatch.chdir(folder)
    tasks = "local_multiple_choice,local_text,written.yaml"
    data = ["--data", "local_multiple_choice=test.jsonl", "--data", "local_text=text.txt"]
    assert evaluate(["run/model/last", "--tasks", tasks, *data, "--limit", "5"]) == 0
    afterwards = read_evaluation(folder / "run" / "evaluation" / "last")
    for name, task in afterwards.tasks.items():
        for one, other in zip(task["scores"], evaluations[-1].tasks[name]["scores"], strict=True):
            assert one["value"] == pytest.approx(other["value"], rel=1e-4), (name, one["metric"])


def check_tracked(root: Path, rows: list[tuple[str, ...]], evaluations: list) -> None:
    """What W&B has: the scores beside the tokens, and a table of each evaluation."""
    (run,) = root.rglob("offline-run-*")
    logged = [item for item in history(read(run)) if "eval/local_text/bits_per_byte" in item]
    assert [float(item["tokens"]) for item in logged] == [float(row[0]) for row in rows]
    assert [float(item["eval/local_text/bits_per_byte"]) for item in logged] == pytest.approx(
        [float(row[1]) for row in rows], rel=1e-4
    )
    tables = [json.loads(path.read_text()) for path in run.rglob("evaluation_*.table.json")]
    tables.sort(key=lambda table: table["data"][0][0])
    for table, evaluation in zip(tables, evaluations, strict=True):
        found = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
        expected = [(name, score) for name, task in evaluation.tasks.items() for score in task["scores"]]
        assert [(line["task"], line["metric"]) for line in found] == [(n, s["metric"]) for n, s in expected]
        for line, (name, score) in zip(found, expected, strict=True):
            task = evaluation.tasks[name]
            assert line["step"] == evaluation.step
            assert line["value"] == pytest.approx(score["value"])
            assert (line["low"] is None) == (score["low"] is None)
            assert (line["items"], line["cut off"]) == (task["num_items"], task["truncated"])
            assert (line["not read"], line["contaminated"]) == (score["unparsed"], task["contaminated"])


@pytest.mark.slow
def test_two_ranks_share_the_items_whole_and_sharded(fresh_run, folder):
    config = with_evaluation(folder, every_n_steps=4)
    settings = [
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.precision=32-true",
        "--data.batch_size=2",
    ]
    found = []
    for strategy in ("ddp", "fsdp"):
        root = f"--trainer.default_root_dir={strategy}"
        code, output = fresh_run(
            "fit", "--config", config, "--config", f"trainer/{strategy}", *settings, "--trainer.max_steps=4", root
        )
        assert code == 0, output
        found.append(read_evaluation(folder / strategy / "evaluation" / "step=4").tasks)
    for name, task in found[0].items():
        assert task["num_items"] == found[1][name]["num_items"]
        for one, other in zip(task["scores"], found[1][name]["scores"], strict=True):
            assert one["value"] == pytest.approx(other["value"], rel=1e-4), (name, one["metric"])


def test_a_task_that_cannot_be_used_is_told_before_training(fresh_run, folder):
    config = with_evaluation(folder, every_n_tokens=500)
    (folder / "text.txt").unlink()
    code, output = fresh_run("fit", "--config", config)
    assert code == 2
    assert "--data local_text=text.txt: there is neither such a file" in output
    assert not (folder / "run" / "metrics.csv").exists()


def test_when_it_is_asked_has_to_be_said_once():
    for when in ({}, {"every_n_steps": 1, "every_n_tokens": 1}):
        with pytest.raises(CallbackError, match="give one of every_n_steps and every_n_tokens"):
            Evaluation(Asked(["a"]), **when)
    with pytest.raises(CallbackError, match="every_n_tokens: 0 is below 1"):
        Evaluation(Asked(["a"]), every_n_tokens=0)
