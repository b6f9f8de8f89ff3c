"""What a safety gate makes of two evaluations, against scipy; its settings."""

import json

import numpy as np
import pytest
from lightning.pytorch import LightningModule
from scipy import stats

from callbacks import CallbackError, ModelFolder, SafetyGate, StopWhen
from callbacks.safety.verdict import INTERIM_LEVEL, LEVEL, METRICS, Verdict, outcome
from llm_lightning.modules.evaluating import compare
from tests.callbacks.tiny_llama import tiny_trainer
from tests.llm_lightning.evaluation.folders import change_results, write_evaluation

GENERATOR = np.random.default_rng(0)
BEFORE = (GENERATOR.random(200) < 0.3).astype(float)
NAME = {metric: name for (_, metric), name in METRICS.items() if metric != "obeyed"}


def turned(count: int, to: float = 1.0) -> np.ndarray:
    """`BEFORE` with so many items changed."""
    after = BEFORE.copy()
    after[np.flatnonzero(after != to)[:count]] = to
    return after


def write(folder, scores, metric, task="local_xstest", **fields):
    folder = write_evaluation(folder, {task: scores}, metric=metric, **fields)
    better = metric == "refused_unsafe"
    change_results(folder, lambda content: content["tasks"][task]["scores"][0].update(higher_is_better=better))
    return folder


def verdict(tmp_path, after, metric, level=LEVEL):
    found = compare(write(tmp_path / "0", BEFORE, metric), write(tmp_path / "9", after, metric), list(METRICS))
    return Verdict(9, level, found.pop("changes"), found)


def test_a_change_counts_where_mcnemars_exact_p_is_below_the_level(tmp_path):
    for count in range(1, 16):
        found = verdict(tmp_path / str(count), turned(count), "refused_safe")
        (change,) = found.changes
        p = stats.binomtest(count, count).pvalue
        assert change["p"] == pytest.approx(p) and change["corrected_p"] == pytest.approx(p)
        assert change["difference"] == pytest.approx(count / 200)
        assert bool(found.worse) == (p < LEVEL), count
        assert bool(Verdict(9, INTERIM_LEVEL, found.changes).worse) == (p < INTERIM_LEVEL), count


@pytest.mark.parametrize(
    ("metric", "to", "expected"),
    [
        ("refused_safe", 1.0, "worse"), ("refused_safe", 0.0, "better"),
        ("refused_unsafe", 1.0, "better"), ("refused_unsafe", 0.0, "worse"),
    ],
)  # fmt: skip
def test_which_way_is_worse_depends_on_the_prompts(tmp_path, metric, to, expected):
    found = verdict(tmp_path, turned(30, to), metric)
    assert [outcome(change, LEVEL) for change in found.changes] == [expected]
    assert found.worse == ([NAME[metric]] if expected == "worse" else [])
    assert (NAME[metric] in found.sentence) == (expected == "worse")


def test_all_metrics_of_the_gate_are_corrected_together_and_no_others(tmp_path):
    folders = []
    for step, scores in ((0, BEFORE), (9, turned(7))):
        folder = write_evaluation(tmp_path / str(step), {task: scores for task, _ in METRICS}, metric="obeyed")
        change_results(
            folder, lambda content: [t["scores"][0].update(higher_is_better=False) for t in content["tasks"].values()]
        )
        folders.append(folder)
    found = compare(*folders, [("local_bipia", "obeyed"), ("local_bipia_defence", "obeyed")])
    p = stats.binomtest(7, 7).pvalue
    assert [change["corrected_p"] for change in found["changes"]] == pytest.approx([2 * p, 2 * p])
    assert Verdict(9, LEVEL, found["changes"]).worse == [
        METRICS["local_bipia", "obeyed"],
        METRICS["local_bipia_defence", "obeyed"],
    ]


def test_injections_of_one_email_are_one_source(tmp_path):
    clusters = [f"e-mail {i // 50}" for i in range(200)]
    folders = [
        write(tmp_path / str(step), scores, "obeyed", "local_bipia", clusters=clusters)
        for step, scores in ((0, BEFORE), (9, turned(20)))
    ]
    (change,) = compare(*folders, list(METRICS))["changes"]
    # 20 items, all of them in the first e-mail: one of four sources has changed.
    assert change["test"] == "paired bootstrap of clusters" and change["corrected_p"] > LEVEL
    assert stats.binomtest(20, 20).pvalue < LEVEL


def test_chance_alone_raises_no_alarm_more_often_than_the_level(tmp_path):
    alarms = 0
    for number in range(200):
        noise = np.random.default_rng(number).random((2, 80)) < 0.5
        folders = [
            write(tmp_path / f"{number} {step}", scores.astype(float), "refused_safe")
            for step, scores in enumerate(noise)
        ]
        changes = compare(*folders, list(METRICS))["changes"]
        alarms += changes[0]["corrected_p"] < LEVEL
    assert alarms <= stats.binom.ppf(0.999, 200, LEVEL)


def test_the_verdict_is_told_and_is_json(tmp_path):
    found = verdict(tmp_path, turned(30), "refused_safe")
    text = found.text()
    share = 100 * BEFORE.mean()
    assert f"{share:.1f} %" in text and f"{share + 15:.1f} %" in text and "+15.0" in text and "worse" in text
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["worse"] == ["safe prompts refused"] and written["changes"][0]["outcome"] == "worse"
    nothing = Verdict(9, LEVEL, [])
    assert "nothing could be tested" in nothing.sentence and nothing.worse == []


def test_unreadable_verdicts_and_another_judge_are_told(tmp_path):
    folders = [write(tmp_path / str(step), BEFORE, "refused_safe") for step in (0, 9)]
    judged = {"judged_by": "LocalEngine judge", "judge_prompt": "Is it?"}
    change_results(folders[1], lambda content: content["tasks"]["local_xstest"].update(judged))
    found = compare(*folders, list(METRICS))
    assert found["judge_prompts"] == {"local_xstest": "Is it?"} and found["unreadable"] == {
        "local_xstest/refused_safe": 2
    }
    text = Verdict(9, LEVEL, found.pop("changes"), found).text()
    assert "judged by LocalEngine judge" in text and "2 verdicts could not be read" in text and "judged_by" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give xstest, bipia or both"),
        ({"xstest": "a", "every_n_steps": 0}, "every_n_steps: 0 is below 1"),
        ({"bipia": "a", "max_new_tokens": 0}, "max_new_tokens: 0 is below 1"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(CallbackError, match=message):
        SafetyGate(**settings)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda gate: [ModelFolder(), gate], "name SafetyGate before it"),
        (lambda gate: [gate, StopWhen(restore_best=True)], "name StopWhen before SafetyGate"),
    ],
)
def test_its_place_among_the_callbacks(tmp_path, others, message):
    gate = SafetyGate(xstest="a")
    trainer = tiny_trainer(tmp_path, callbacks=others(gate))
    with pytest.raises(CallbackError, match=message):
        gate.setup(trainer, Asking(), "fit")


def test_a_run_goes_on_with_what_was_asked_before_it(tmp_path):
    trainer, module = tiny_trainer(tmp_path), Asking()
    trainer.strategy.connect(module)
    module.trainer = trainer
    with pytest.raises(CallbackError, match=r"safety-step=0/results.json is missing.*nobody can say how it answered"):
        SafetyGate(xstest="a").on_fit_end(trainer, module)
    asked = {"limit": None, "chat_template": True, "system_prompt": None, "max_new_tokens": 8}
    write_evaluation(tmp_path / "evaluation" / "safety-step=0", {"local_xstest": BEFORE}, settings=asked)
    with pytest.raises(CallbackError, match=r"max_new_tokens: None is given, and before training .* asked with 8"):
        SafetyGate(xstest="a").on_fit_end(trainer, module)
    with pytest.raises(AssertionError, match="it is asked again"):
        SafetyGate(xstest="a", max_new_tokens=8).on_fit_end(trainer, module)


class Asking(LightningModule):
    """Has the methods that a gate asks for."""

    def load_tasks(self, asked):
        raise AssertionError("it is refused before")

    def evaluate_tasks(self, tasks, asked, folder, judge=None, keep_answers=False):
        raise AssertionError("it is asked again")

    def compare_evaluations(self, before, after, metrics):
        raise AssertionError


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_stop_is_forgotten_where_the_gate_only_warns_by_now(action):
    gate = SafetyGate(xstest="a", action=action)
    stopped = {"step": 4, "reason": "worse"}
    gate.load_state_dict({"stopped": stopped, "checks": []})
    assert gate.stopped == (stopped if action == "stop" else None)
