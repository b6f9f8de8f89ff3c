"""Answers judged by a model: what it is asked, what its verdicts become, and what is asked twice."""

import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from datamodules import OpenAIEngine
from llm_lightning.errors import UserError
from llm_lightning.evaluation.evaluate import Prompting, evaluate
from llm_lightning.evaluation.harness import HarnessSettings, NetworkLM
from llm_lightning.evaluation.tasks.loading import load_tasks
from llm_lightning.measuring.answers import Answers
from llm_lightning.measuring.statistics import wilson_interval
from llm_lightning.rollouts import LocalEngine
from tests.chat_server import ChatServer
from tests.llm_lightning.evaluation.small_model import WRITTEN, questions, save_small_model, write_rows, write_task

PROMPTS = [{"prompt": f"Is {i} {{answer}} a number?", "label": ("safe", "unsafe")[i % 2]} for i in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LocalEngine(str(save_small_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def xstest(tmp_path):
    return load_tasks(["local_xstest"], data={"local_xstest": str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))})


def asked(model, tasks, judge, answers=None):
    lm = NetworkLM(model.network, model.tokenizer, "small", HarnessSettings(max_new_tokens=6), answers=answers)
    return evaluate(lm, tasks, Prompting(), judge=judge)


def test_verdicts_take_the_place_of_the_rules(model, xstest):
    server = ChatServer()
    server.answer = lambda body: verdict(body["messages"][0]["content"])
    with server.running():
        outcome = asked(model, xstest, OpenAIEngine(server.url, "judge"))
    task = outcome.tasks["local_xstest"]
    assert task["judged_by"] == f"OpenAIEngine {server.url} judge" and "Does the answer refuse" in task["judge_prompt"]
    scores = {score["metric"]: score for score in task["scores"]}
    # Prompts 0, 2, ... are safe; those of 0, 3, 6 and 9 are refusals, and no verdict on 4 can be read.
    assert scores["refused_safe"]["value"] == 2 / 5 and scores["refused_safe"]["unparsed"] == 1
    assert scores["refused_unsafe"]["value"] == 2 / 6 and scores["refused_unsafe"]["unparsed"] == 0
    assert (scores["refused_safe"]["low"], scores["refused_safe"]["high"]) == wilson_interval(2, 5)
    assert len(outcome.rows) == 11 and 4 not in {row["item"] for row in outcome.rows}
    # The answer stands in its place once, also where the prompt spells that place.
    answers = {row["item"]: row["answer"] for row in outcome.rows}
    calls = {call["messages"][0]["content"]: call for call in server.calls}
    (question,) = [one for one in calls if "Is 3 " in one]
    assert f"### Request\nIs 3 {{answer}} a number?\n\n### Answer\n{answers[3]}\n\n" in question
    assert {call["temperature"] for call in calls.values()} == {0.0} and len(server.calls) == 12


def verdict(question: str) -> str:
    number = int(question.partition("\nIs ")[2].split()[0])
    return "Who knows?" if number == 4 else "**Yes**, it does." if number % 3 == 0 else "No. Yes would be wrong."


def test_verdicts_are_kept_and_asked_for_once(model, xstest, tmp_path):
    server = ChatServer()
    server.answer = lambda body: "Yes"
    with server.running():
        for _ in range(2):
            answers = Answers(tmp_path / "answers")
            outcome = asked(model, xstest, OpenAIEngine(server.url, "judge"), answers)
            answers.close()
        assert len(server.calls) == 12 and {row["value"] for row in outcome.rows} == {1.0}
        asked(model, xstest, OpenAIEngine(server.url, "another"), Answers(tmp_path / "answers"))
    assert len(server.calls) == 24


def test_a_judge_from_a_folder(model, xstest, tmp_path):
    judge = LocalEngine(str(save_small_model(tmp_path / "judge", hidden_size=32)))
    task = asked(model, xstest, judge).tasks["local_xstest"]
    assert task["judged_by"] == f"LocalEngine {tmp_path / 'judge'} ({judge.model})"
    # Random weights say neither yes nor no: all items are left out.
    assert task["scores"] == [] and task["num_items"] == 12
    assert "network" not in judge.__dict__, "its memory is given back"


def test_without_a_judge_the_rules_decide(model, xstest):
    task = asked(model, xstest, None).tasks["local_xstest"]
    assert task["judged_by"] == "rules" and task["judge_prompt"] is None
    assert [score["unparsed"] for score in task["scores"]] == [None, None]


def test_a_task_that_does_not_say_what_a_judge_is_asked(model, tmp_path):
    rows = write_rows(tmp_path / "test.jsonl", questions(3))
    tasks = load_tasks([str(write_task(tmp_path, "written", rows, **WRITTEN))])
    with pytest.raises(UserError, match="the task written does not say what a judge is asked"):
        asked(model, tasks, model)


def test_items_are_drawn_the_same_each_time_and_not_the_first_ones(model, xstest):
    prompting = Prompting(limit=5, draw=True)
    lm = NetworkLM(model.network, model.tokenizer, "small", HarnessSettings(max_new_tokens=2))
    found = [{row["item_hash"] for row in evaluate(lm, xstest, prompting).rows} for _ in range(2)]
    assert found[0] == found[1] and len(found[0]) == 5
    assert prompting.drawn(12) != list(range(5)) and len(Prompting(limit=0.25, draw=True).drawn(10)) == 3
    assert Prompting(limit=99, draw=True).drawn(12) == list(range(12))
