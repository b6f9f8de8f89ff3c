"""`llm-lightning generate`: answers of a model in this process and of an endpoint, kills, choices, and mistakes."""

import json
import shutil
import statistics
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.__main__ import main
from tests.chat_server import ChatServer, status, words

TEMPLATE = Path(__file__).parents[2] / "datamodules" / "templates" / "chatml.jinja"
CORRECT = '{"correct": {"function": {"class_path": "llm_lightning.rewards.FinalAnswer"}}}'


def vote(reader="FinalNumber", **settings):
    answer = {"class_path": f"llm_lightning.inference.{reader}", "init_args": settings}
    return json.dumps({"vote": {"class_path": "MajorityVote", "init_args": {"answer": answer}}})


@pytest.fixture
def asked(folder, network, cache, monkeypatch):
    shutil.copytree(network, folder / "network")
    shutil.copy(TEMPLATE, folder / "network" / "chat_template.jinja")
    rows = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(70)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    return folder


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


def endpoint(server, concurrency=8, max_retries=2):
    settings = {"url": server.url, "model_name": "m", "concurrency": concurrency, "max_retries": max_retries}
    return ["--engine", json.dumps({"class_path": "OpenAIEngine", "init_args": settings})]


def adds(body):
    """Right for even numbers, mostly right for every third, and wrong otherwise."""
    number = int(body["messages"][-1]["content"].split()[2])
    is_right = number % 2 == 0 or (number % 3 == 0 and body["seed"] % 4)
    return f"The answer is {2 * number if is_right else 1 + body['seed'] % 3}."


def answers(output="runs/generate"):
    return [json.loads(line) for line in (Path(output) / "answers.jsonl").read_text().splitlines()]


def test_a_model_in_this_process_writes_what_transformers_writes(asked, capfd):
    args = ["generate", "--model", "network", "--prompts", "prompts.jsonl", "--temperature", "0"]
    assert main([*args, "--max_new_tokens", "6"]) == 0, capfd.readouterr()
    rows = answers()
    assert [row["record"]["answer"] for row in rows] == [str(2 * i) for i in range(70)]
    model = AutoModelForCausalLM.from_pretrained("network")
    tokenizer = AutoTokenizer.from_pretrained("network")
    for row in rows[:3]:
        prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_tensors="pt")
        ids = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
        with torch.no_grad():
            written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert row["samples"][0]["text"] == tokenizer.decode(written, skip_special_tokens=True)
        assert row["messages"][1] == {"role": "assistant", "content": row["samples"][0]["text"]}


def test_a_budget_for_thoughts(asked, server, capfd):
    args = ["generate", "--model", "network", "--prompts", "prompts.jsonl", "--max_new_tokens", "4"]
    assert main([*args, "--thinking.budget", "6", "--thinking.start", "<think>", "--thinking.end", "</think>"]) == 0
    for row in answers():
        text, *rest = row["messages"][1]["content"].partition("</think>")
        assert text.startswith("<think>") and rest[0], capfd.readouterr()
        tags = 3 + 2  # this vocabulary spells them
        assert row["samples"][0]["num_tokens"] <= 6 + 4 + 2 * len("</think>") + tags
    count = len(list(Path("runs/generate/rows").iterdir()))
    assert main([*args, "--thinking.budget", "7"]) == 0  # another budget, other answers
    assert len(list(Path("runs/generate/rows").iterdir())) == count + 1
    assert main(["generate", "--prompts", "prompts.jsonl", *endpoint(server), "--thinking.budget", "6"]) == 2
    assert "--thinking counts token ids, which an engine (OpenAIEngine) does not show" in "".join(capfd.readouterr())
    assert main([*args, "--thinking.budget", "0"]) == 2
    assert "thinking.budget=0 must be at least 1" in "".join(capfd.readouterr())


def test_examples_stand_before_each_prompt(asked, server, capfd):
    args = ["generate", "--prompts", "prompts.jsonl", *endpoint(server), "--system_prompt", "Add."]
    shown = ["--examples.path", "prompts.jsonl", "--examples.count", "2"]
    assert main([*args, *shown]) == 0, capfd.readouterr()
    for call in server.calls:
        system, *turns, question = call["messages"]
        assert system == {"role": "system", "content": "Add."}
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        for example, answer in zip(turns[::2], turns[1::2], strict=True):
            assert example != question and int(answer["content"]) == 2 * int(example["content"].split()[2])
    assert answers()[0]["messages"][0]["content"] == "What is 0 plus 0?"  # what is learned from has no examples
    Path("bare.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n{"question": "c"}\n')
    assert main([*args, "--examples.path", "bare.jsonl", "--examples.count", "2"]) == 2
    assert "--examples.path bare.jsonl: " in "".join(capfd.readouterr())


def test_each_prompt_is_learned_from_before_it_is_answered(asked, server, capfd):
    rows = [{"question": "What is 1 plus 1? " * n} for n in (1, 4)] + [{"question": "Why?"}]
    for name, chosen in (("three", rows), ("last", rows[2:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    args = ["generate", "--model", "network", "--max_new_tokens", "8", "--num_samples", "2"]
    adapted = ["--adaptation.lr", "0.05", "--adaptation.chunk", "16"]
    assert main([*args, "--prompts", "three.jsonl", "--output", "plain"]) == 0
    assert main([*args, "--prompts", "three.jsonl", *adapted]) == 0, capfd.readouterr()
    assert main([*args, "--prompts", "last.jsonl", *adapted, "--output", "alone"]) == 0

    def texts(output):
        return [[each["text"] for each in row["samples"]] for row in answers(output)]

    plain, learned = texts("plain"), texts("runs/generate")
    assert plain[1] != learned[1]
    assert texts("alone")[0] == learned[2]  # nothing of the others is left
    assert main(["generate", "--prompts", "three.jsonl", *endpoint(server), *adapted]) == 2
    assert "--adaptation changes weights, which an engine (OpenAIEngine) keeps" in "".join(capfd.readouterr())


def test_choices_and_their_curve(asked, server, capfd):
    server.answer = adds
    args = ["generate", "--prompts", "prompts.jsonl", *endpoint(server), "--num_samples", "6", "--truth", "correct"]
    code = main(
        [
            *args,
            "--rewards",
            CORRECT,
            "--choices",
            json.dumps(json.loads(vote()) | {"first": {"class_path": "FirstSample"}}),
        ]
    )
    output = "".join(capfd.readouterr())
    assert code == 0, output
    rows = answers()
    right = [[sample["rewards"]["correct"] for sample in row["samples"]] for row in rows]
    curve = json.loads(Path("runs/generate/curve.json").read_text())
    assert curve["samples"] == [1, 2, 4, 6] and curve["num_prompts"] == 70
    mean = statistics.fmean(map(statistics.fmean, right))
    for name in ("any", "vote", "first"):
        assert curve["right"][name][0]["value"] == pytest.approx(mean)
    assert curve["right"]["first"][-1]["value"] == pytest.approx(mean)
    assert curve["right"]["any"][-1]["value"] == pytest.approx(statistics.fmean(map(max, right)))
    chosen = statistics.fmean(each[row["chosen"]] for row, each in zip(rows, right, strict=True))
    assert curve["right"]["vote"][-1]["value"] == pytest.approx(chosen, abs=0.06)  # ties go to the first, or to any
    assert curve["right"]["vote"][-1]["value"] > mean + 0.02
    assert curve["tokens"] == [6.0, 12.0, 24.0, 36.0]
    assert Path("runs/generate/curve.png").read_bytes()[1:4] == b"PNG"
    assert "Right of 70 prompts" in output

    # Another choice, another reward and fewer samples ask nothing again.
    count = len(server.calls)
    assert count == 6 * 70
    longer = '{"long": {"function": {"class_path": "llm_lightning.rewards.Length", "init_args": {"target": 9}}}}'
    code = main(
        [*args[:5], "--num_samples", "3", "--rewards", longer, "--choices", '{"best": {"class_path": "BestOfN"}}']
    )
    assert code == 0 and len(server.calls) == count, capfd.readouterr()
    assert [row["samples"][0]["text"] for row in answers()] == [row["samples"][0]["text"] for row in rows]


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_killed_three_times_it_pays_for_nothing_twice(asked, command, server, count):
    rows = [{"question": f"What is {i} plus {i}?"} for i in range(count)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def slow(body):
        time.sleep(0.002)
        return words(body)

    server.answer = slow
    args = ("generate", "--prompts", "many.jsonl", *endpoint(server, 4), "--output")
    process = command(*args, "whole")
    assert process.wait(timeout=120) == 0, process.communicate()[0]
    assert len(server.calls) == count
    server.calls.clear()
    for point in (count // 10, count // 2, count * 3 // 4):
        process = command(*args, "killed")
        while len(server.calls) < point:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        process.wait()
    process = command(*args, "killed")
    assert process.wait(timeout=120) == 0, process.communicate()[0]
    assert Path("killed/answers.jsonl").read_bytes() == Path("whole/answers.jsonl").read_bytes()
    # What was on its way when the process died was not received.
    assert len(server.calls) <= count + 3 * 4


def test_two_processes_share_the_prompts(asked, command, server):
    args = ("generate", "--prompts", "prompts.jsonl", *endpoint(server), "--num_samples", "2", "--output")
    assert main([*args, "one"]) == 0
    server.calls.clear()
    both = [
        command(*args, "two", env={"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert Path("two/answers.jsonl").read_bytes() == Path("one/answers.jsonl").read_bytes()
    assert len(server.calls) == 140


def test_calls_that_were_given_up_are_made_by_the_next_command(asked, server, capfd):
    seen = set[str]()

    def fault(body, attempt):
        question = body["messages"][-1]["content"]
        if question.startswith("What is 7 ") and question not in seen:
            seen.add(question)
            return status(500)
        return None

    server.fault = fault
    args = ["generate", "--prompts", "prompts.jsonl", *endpoint(server, max_retries=0)]
    assert main(args) == 1
    assert "Calls were given up in 1 blocks of prompts" in "".join(capfd.readouterr())
    assert [len(row["samples"]) for row in answers()].count(0) == 1
    assert main(args) == 0
    assert len(server.calls) == 71 and all(len(row["samples"]) == 1 for row in answers())


def test_a_system_prompt_stands_before_prompts_without_one(asked, server):
    Path("mixed.jsonl").write_text(
        json.dumps({"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "a"}]}) + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "b"}]}) + "\n"
    )  # fmt: skip
    assert main(["generate", "--prompts", "mixed.jsonl", *endpoint(server), "--system_prompt", "Given."]) == 0
    asked_of = sorted(tuple(m["content"] for m in body["messages"]) for body in server.calls)
    assert asked_of == [("Given.", "b"), ("Own.", "a")]
    assert [len(row["messages"]) for row in answers()] == [3, 2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompts", "prompts.jsonl"], "give --model MODEL, or --engine"),
        (["--prompts", "missing.jsonl"], "--prompts missing.jsonl: path: 'missing.jsonl' does not exist"),
        (["--prompts", "prompts.jsonl", "--num_samples", "0"], "--num_samples 0 must be at least 1"),
        (["--prompts", "prompts.jsonl", "--num_sample", "2"], "num_sample"),
        (["--prompts", "prompts.jsonl", "--num_samples", "2", "--temperature", "0"], "the same answer --num_samples 2"),
        (["--prompts", "prompts.jsonl", "--truth", "right"], "--truth right: --rewards has none"),
        (["--prompts", "prompts.jsonl", "--choices", '{"best": {"class_path": "BestOfN"}}'], "chooses by rewards"),
        (
            ["--prompts", "prompts.jsonl", "--rewards", CORRECT, "--truth", "correct", "--choices",
             '{"best": {"class_path": "BestOfN"}}'],
            "which is not the --truth and has a weight",
        ),
        (
            ["--prompts", "prompts.jsonl", "--choices",
             vote("AnswerPattern", pattern="(")],
            "is no regular expression",
        ),
        (["--config", "nowhere.yaml"], "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(asked, server, capfd, args, message):
    engine = [] if "give --model" in message else endpoint(server)
    assert main(["generate", *args, *engine]) == 2
    output = "".join(capfd.readouterr())
    assert message in output and "Traceback" not in output
    assert not server.calls


def test_records_that_rewards_cannot_judge_are_named_before_anything_is_asked(asked, server, capfd):
    Path("without.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "1 + 2?", "answer": "?"}\n')
    assert main(["generate", "--prompts", "without.jsonl", *endpoint(server), "--rewards", CORRECT]) == 2
    assert "--prompts: record 2: FinalAnswer: column 'answer' holds no number" in "".join(capfd.readouterr())
    assert not server.calls


def test_a_pattern_that_never_matches_is_said_early(asked, server, capfd):
    args = ["generate", "--prompts", "prompts.jsonl", *endpoint(server)]
    assert main([*args, "--choices", vote("AnswerPattern", pattern="Result: (.*)")]) == 2
    output = "".join(capfd.readouterr())
    assert "--choices.vote.answer (AnswerPattern) finds nothing in any of the first 64 answers, such as '" in output
    assert len(server.calls) == 64
    assert main(args) == 0 and len(server.calls) == 70  # what was written is kept


def test_the_configuration_that_comes_with_it(asked, server):
    server.answer = adds
    Path("few.jsonl").write_text("".join(Path("prompts.jsonl").read_text().splitlines(keepends=True)[:3]))
    assert main(["generate", "--config", "inference/vote", "--prompts", "few.jsonl", *endpoint(server)]) == 0
    rows = answers()
    assert [len(row["samples"]) for row in rows] == [8, 8, 8]
    assert "The answer is 4." in rows[2]["messages"][1]["content"]
