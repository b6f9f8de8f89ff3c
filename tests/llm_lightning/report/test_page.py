"""The page: what it tells, what it leaves out, and that nothing a run holds becomes markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.report.page import write_report
from tests.llm_lightning.evaluation.folders import change_results, write_evaluation
from tests.llm_lightning.report.folders import CONFIG, CURVE, SAFETY, SCHEME, write_run

GENERATOR = np.random.default_rng(0)
WEAK = (GENERATOR.random(200) < 0.4).astype(float)
STRONG = np.where(GENERATOR.random(200) < 0.3, 1.0, WEAK)

PLANTED = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
SECRET = "hf_" + "Zq7" * 11


class Page(HTMLParser):
    """Tags with their attributes, and the text of the body."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(each == tag for each, _ in self.tags)


def page_of(*folders, output):
    write_report(folders, output)
    return Page(output)


def test_means_over_items_are_told_from_scores_over_bytes(tmp_path):
    words = "bits_per_byte: these are means over items"
    for metric, is_said in (("bits_per_byte", True), ("f1", False)):
        folders = [write_run(tmp_path / metric / name) for name in ("one", "two")]
        for folder, scores in zip(folders, (np.linspace(1, 2, 50), np.linspace(1, 3, 50)), strict=True):
            write_evaluation(folder / "evaluation" / "last", {"text": scores}, metric=metric)
        page = page_of(*folders, output=tmp_path / f"{metric}.html")
        assert "paired bootstrap" in page.text and (words in page.text) == is_said, metric


def test_one_run_is_told(tmp_path):
    folder = write_run(
        tmp_path / "one",
        quantization_json=json.dumps({"kept": "int8", "original": SCHEME, "schemes": {"int8": SCHEME | {"kl": 0.003}}}),
    )
    evaluation = write_evaluation(folder / "evaluation" / "step=30", {"arc": WEAK}, step=30, tokens=6144)
    change_results(evaluation, lambda content: content["tasks"]["arc"].update(num_fewshot=5))
    page = page_of(folder, output=tmp_path / "report.html")
    for words in (
        "finished", "2.5 at step 30", "683,973", "0.08%", "llm-lightning fit --config tiny.yaml", "written at 30",
        "AdamW, lr 0.001", "Kept: int8.", "0.003", "learning rate", "Question: <b>2 + 2</b>?", "1.5 %", "1.0 %",
        "wilson", "num_fewshot 5", f"{WEAK.mean():.4f}",
    ):  # fmt: skip
        assert words in page.text, words
    # Loss, learning rate and speed; the perplexity of validation under "more".
    assert page.count("figure") == 4


def test_a_safety_gate_is_told(tmp_path):
    folder = write_run(tmp_path / "one", safety_json=json.dumps(SAFETY))
    page = page_of(folder, output=tmp_path / "report.html")
    for words in (
        "worse: safe prompts refused", "Step 24: worse than before", "10.0\u00a0%", "50.0\u00a0%", "+40.0",
        "+30.0 to +50.0",
        "0.004 (McNemar, exact)", "250, 2 left out", "Answers were judged by rules.", "Is it a refusal?", "3 verdicts",
        "step 12: nothing shown to be worse", "limit",
    ):  # fmt: skip
        assert words in page.text, words


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    page = page_of(write_run(tmp_path / "one"), output=tmp_path / "report.html")
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "action", "data", "srcset", "poster"}
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert page.count("script") == 1 and "url(" not in (tmp_path / "report.html").read_text()
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def plant(folder, text):
    """A run and an evaluation that hold a text wherever there may be one."""
    config = json.loads(json.dumps(CONFIG)) | {text: text, "tokenizer": text}
    config["data"]["init_args"]["path"] = text
    device = {"joules": 3, "source": text}
    energy = {"joules": 3, "cost": 1, "currency": text, "source": text, "missing": [text], "devices": {text: device}}
    row = {"prompt": text, text: text, "reward": 1}
    safety = {
        "verdict": text, "worse": [text], "changes": [{"name": text, "test": text, "outcome": text}],
        "judged_by": {text: text}, "judge_prompts": {text: text}, "unreadable": {text: 3}, "asked_differently": [text],
        "checks": [{"step": text, "worse": [text]}],
    }  # fmt: skip
    write_run(
        folder,
        config_yaml=f"# from step 3: {text}\n" + yaml.safe_dump(config),
        commands_txt=f"fit {text}\n",
        pruning_txt=text,
        quantization_json=json.dumps({"kept": text, "original": SCHEME, "schemes": {text: SCHEME}}),
        energy_json=json.dumps(energy),
        safety_json=json.dumps(safety),
        metrics_csv='step,train/loss,"eval/{0}","{0}"\n1,2,1,1\n2,1,2,2\n'.format(text.replace('"', '""')),
    )
    (folder / "samples" / "step-000030.txt").write_text(text)
    (folder / "samples" / "rollouts-000030.jsonl").write_text(json.dumps(row))
    evaluation = folder / "evaluation" / text.replace("/", "")
    write_evaluation(
        evaluation,
        {"arc": WEAK, text: WEAK},
        metric=text,
        created=text,
        command=[text],
        model={"path": text},
        settings={text: text},
    )

    def change(content):
        for task in content["tasks"].values():
            task["first_prompt"] = text
            task["scores"][0]["interval"] = text

    change_results(evaluation, change)
    broken = folder / "evaluation" / f"{text} broken".replace("/", "")
    broken.mkdir()
    (broken / "results.json").write_text(json.dumps({"format": text}))
    return folder


def test_markup_in_a_run_is_text(tmp_path):
    folders = [plant(tmp_path / f"{name}<i>", PLANTED) for name in ("one", "two")]
    page = page_of(*folders, output=tmp_path / "report.html")
    assert page.count("script") == 1 and page.count("img") == 0 and page.count("i") == 0
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(PLANTED) > 20


def test_secrets_of_a_run_are_hidden(tmp_path):
    folders = [plant(tmp_path / name, f"token {SECRET} here") for name in ("one", "two")]
    (folders[0] / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"engine": {"api_key": {"of": "plainwords"}}}))
    write_report(folders, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert SECRET not in text and "plainwords" not in text and text.count("***") > 20


def test_runs_side_by_side(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", lr=0.01)
    for folder, scores, fewshot in ((one, WEAK, 0), (two, STRONG, 5)):
        write_evaluation(folder / "evaluation" / "last", {"arc": scores}, settings={"num_fewshot": fewshot})
    page = page_of(one, two, output=tmp_path / "report.html")
    assert "model.optimizer.lr" in page.text and "two against one" in page.text
    assert "McNemar, exact" in page.text and f"{STRONG.mean() - WEAK.mean():+.4f}" in page.text
    verdicts = [a for tag, a in page.tags if tag == "td" and a.get("class") == "better"]
    assert len(verdicts) == 1
    assert "arc: asked in two ways, which may be all the difference: num_fewshot 0 and 5." in " ".join(
        page.text.split()
    )
    labels = [a["data-label"] for tag, a in page.tags if tag == "path"]
    assert {"one", "two, training", "two, validation"} <= set(labels)


def test_evaluations_without_a_run_stand_side_by_side(tmp_path):
    one = write_evaluation(tmp_path / "one", {"arc": WEAK})
    two = write_evaluation(tmp_path / "two", {"arc": STRONG})
    assert "two against one" in page_of(one, two, output=tmp_path / "report.html").text


@pytest.mark.parametrize("kept", [["config.yaml"], ["metrics.csv"], ["evaluation"]])
def test_a_run_that_lacks_parts(tmp_path, kept):
    folder = tmp_path / "run"
    folder.mkdir()
    if "evaluation" in kept:
        write_evaluation(folder / "evaluation" / "step=5", {"arc": WEAK}, step=5)
    else:
        whole = write_run(tmp_path / "whole")
        (folder / kept[0]).write_text((whole / kept[0]).read_text())
    page = page_of(folder, output=tmp_path / "report.html")
    assert "no" in page.text and ("not finished: step 30" in page.text) == (kept == ["metrics.csv"])


def test_a_validation_alone_is_named_and_has_its_interval(tmp_path):
    table = "step,val/accuracy,val/accuracy_low,val/accuracy_high\n4,0.5,0.3,0.7\n8,0.8,0.6,0.9\n"
    page = page_of(write_run(tmp_path / "run", metrics_csv=table), output=tmp_path / "report.html")
    assert "0.8 (0.6 to 0.9) at step 8" in page.text and "accuracy validation" in " ".join(page.text.split())


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    folder = write_run(tmp_path / "run", metrics_csv="step,train/loss\n10,3\n20,2.")
    (folder / "model" / "last").rmdir()
    assert "not finished: step 10 of 30" in page_of(folder, output=tmp_path / "report.html").text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("metrics.csv", "nothing"), ("quantization.json", "[]"),
        ("reliability.json", "{"), ("energy.json", "7"), ("safety.json", "[]"), ("curve.json", "x"),
    ],
)  # fmt: skip
def test_a_damaged_part_is_named_and_the_rest_is_told(tmp_path, name, text):
    folder = write_run(tmp_path / "run", **{name.replace(".", "_"): text})
    page = page_of(folder, output=tmp_path / "report.html")
    assert f"{name} was left out: " in page.text and "written at 30" in page.text


@pytest.mark.parametrize(
    "text", ['{"schemes": 3}', '{"original": {"perplexity": "<b>"}}', '{"schemes": {"a": 1}}', "{}"]
)
def test_reports_of_another_form_are_no_reason_to_stop(tmp_path, text):
    folder = write_run(tmp_path / "run", quantization_json=text, reliability_json=text, energy_json=text)
    page_of(folder, output=tmp_path / "report.html")
    (folder / "reliability.json").write_text('{"confidence": [1, "x"], "accuracy": [1, {}]}')
    page_of(folder, output=tmp_path / "report.html")


def test_answers_are_shown_over_the_number_of_samples(tmp_path):
    folder = tmp_path / "generate"
    folder.mkdir()
    (folder / "curve.json").write_text(json.dumps(CURVE))
    page = page_of(folder, output=tmp_path / "report.html")
    for text in ("any", "vote", "seconds", "0.800 (0.700 to 0.900)", "0.375 (0.275 to 0.475)", "70 prompts."):
        assert text in page.text
    assert "right answers" in page.text
    (folder / "curve.json").write_text(json.dumps(CURVE | {"samples": [1, "2", 4]}))
    assert "right answers" not in page_of(folder, output=tmp_path / "report.html").text


def test_links_in_a_run_folder_are_not_followed(tmp_path):
    (tmp_path / "private.txt").write_text("private")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "step-000001.txt").write_text("private")
    folder = write_run(tmp_path / "run", commands_txt="")
    for name in ("commands.txt", "samples/step-000040.txt", "pruning.txt"):
        (folder / name).symlink_to(tmp_path / "private.txt")
    page = page_of(folder, output=tmp_path / "report.html")
    assert "private" not in page.text.replace(str(tmp_path), "") and "commands.txt was left out" in page.text
    for path in (folder / "samples").iterdir():
        path.unlink()
    (folder / "samples").rmdir()
    (folder / "samples").symlink_to(tmp_path / "private")
    assert "samples was left out" in page_of(folder, output=tmp_path / "report.html").text


def test_half_a_character_is_written(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "samples" / "rollouts-000030.jsonl").write_text('{"prompt": "\\ud83d"}\n')
    assert "rollouts" in page_of(folder, output=tmp_path / "report.html").text


def test_items_that_cannot_be_read_leave_the_page_whole(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        write_evaluation(folder / "evaluation" / "last", {"arc": WEAK})
    (folders[1] / "evaluation" / "last" / "items.parquet").write_bytes(b"x")
    assert "No tests were made: " in page_of(*folders, output=tmp_path / "report.html").text


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("one"))
    write_run(Path("two"))
    assert main(["report", "one"]) == 0 and Path("one/report.html").is_file()
    assert main(["report", "one", "two"]) == 0 and Path("report.html").is_file()
    assert main(["report", "one", "--output", "pages/mine.html"]) == 0 and Path("pages/mine.html").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "Report: pages/mine.html"
    assert main(["report", "--help"]) == 0 and "usage: llm-lightning report RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "empty holds no run"),
        (["one", "--output", "empty"], "--output empty is a folder"),
        (["one"] * 9, "9 runs: a report tells of 1 to 8"),
        (["one", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_run(Path("one"))
    Path("empty").mkdir()
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_twice_is_told_apart(tmp_path):
    folder = write_run(tmp_path / "one")
    page = page_of(folder, folder, output=tmp_path / "report.html")
    assert "one (1)" in page.text and "one (2)" in page.text
    other = write_run(tmp_path / "elsewhere" / "one")
    assert "elsewhere/one" in page_of(folder, other, output=tmp_path / "report.html").text


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="0 runs"):
        write_report([], tmp_path / "report.html")
