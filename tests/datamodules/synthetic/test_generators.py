"""Each generator against an endpoint whose answers are known: what is asked, what comes of it, and what is dropped."""

import json
import re

import pytest

from datamodules import InstructionDataModule
from datamodules.errors import DataError
from datamodules.synthetic.generation import Generation
from datamodules.synthetic.generators import (
    Answers,
    BackTranslation,
    ClassBalance,
    Paraphrase,
    PreferencePairs,
    Rationales,
    SelfInstruct,
)
from datamodules.synthetic.generators.self_instruct import instruction_of
from datamodules.synthetic.openai_engine import OpenAIEngine
from datamodules.synthetic.seeds import Seed, Seeds, _write, prompt_seeds
from llm_lightning.rewards import FinalAnswer, Length
from tests.chat_server import ChatServer, completion, send_json, words
from tests.datamodules.chat_tokenizers import chat_tokenizer


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer("smollm2").save_pretrained(folder)
    return InstructionDataModule(tokenizer=str(folder)).encoder


def seed(number, question, answer, rejected=None, **columns):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Seed(f"seed-{number}", messages, rejected, columns)


@pytest.fixture
def make(tmp_path, server, encoder):
    """The candidates and the statistics of one generator over some seeds."""

    def run(generator, seeds, name="g"):
        path = tmp_path / f"{name}.arrow"
        _write(path, iter(seeds))
        engine = OpenAIEngine(server.url, "m")
        generation = Generation({name: generator}, {name: Seeds(path)}, engine, encoder, tmp_path)
        generation.run()
        return list(generation.candidates()), generation.statistics()[name]

    return run


ADDITIONS = [seed(i, f"What is {i} plus {i}?", f"{i} and {i} make {2 * i}.\n#### {2 * i}", n=i) for i in range(20)]


def asked(body):
    return body["messages"][-1]["content"]


def test_self_instruct(make, server):
    server.answer = lambda body: (
        f"1. New task {body['seed']}\n2. Another one" if asked(body).startswith("Here") else f"Done: {asked(body)}"
    )
    candidates, statistics = make(SelfInstruct(count=7, num_shots=3), ADDITIONS)
    assert statistics == {"num_tasks": 7, "num_candidates": 7, "num_failed": 0, "num_tokens": 7 * 12, "dropped": {}}
    assert len({c.id for c in candidates}) == 7
    for candidate in candidates:
        assert re.fullmatch(r"New task \d+", candidate.prompt) and candidate.answer == f"Done: {candidate.prompt}"
        provenance = candidate.provenance
        assert provenance.generator == "g" and provenance.model == "m" and len(provenance.seed_ids) == 3
        numbers = re.findall(r"(\d+)\. What is (\d+) plus", provenance.prompt)
        assert [f"seed-{i}" for _, i in numbers] == list(provenance.seed_ids) and len(set(numbers)) == 3
        assert provenance.parameters["temperature"] == 0.8 and provenance.parameters["top_p"] == 0.95
    assert len({c.provenance.seed_ids for c in candidates}) > 3  # the examples are drawn anew for each


def test_self_instruct_drops_copies_of_the_request(make, server):
    server.answer = lambda body: "Count to three. Write one more task of this kind, about cats."
    candidates, statistics = make(SelfInstruct(count=4), ADDITIONS)
    assert not candidates and statistics["dropped"] == {"repeats the request": 4}


def test_other_seed_other_examples_same_seed_same_calls(make, server):
    make(SelfInstruct(count=5), ADDITIONS, "one")
    first = [body for body in server.calls if asked(body).startswith("Here")]
    make(SelfInstruct(count=5), ADDITIONS, "two")
    second = [body for body in server.calls if asked(body).startswith("Here")][5:]
    make(SelfInstruct(count=5, seed=1), ADDITIONS, "three")
    third = [body for body in server.calls if asked(body).startswith("Here")][10:]
    in_order = [sorted(json.dumps(body) for body in bodies) for bodies in (first, second, third)]
    assert in_order[0] == in_order[1] and not set(in_order[0]) & set(in_order[2])


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("4. Write a poem.\n\n5. Sing a song.", "Write a poem."),
        ('Task 4: "Write a poem."', "Write a poem."),
        ("New task: Count:\n- one\n- two", "Count:\n- one\n- two"),
        ("Name a colour.\nAnswer: blue", "Name a colour."),
        ("  2)  ", ""),
    ],
)
def test_the_instruction_in_a_reply(text, instruction):
    assert instruction_of(text) == instruction


def test_paraphrase_keeps_the_answer_and_counts_what_it_drops(make, server):
    said = {0: "What is 0 plus 0?", 1: "  ", 2: "Add 2 to 2."}
    server.answer = lambda body: said[int(re.search(r"is (\d) plus", asked(body))[1])]
    candidates, statistics = make(Paraphrase(), ADDITIONS[:3])
    assert statistics["dropped"] == {"the words are the same": 1, "empty reply": 1}
    [candidate] = candidates
    assert candidate.prompt == "Add 2 to 2." and candidate.answer.endswith("#### 4")
    assert candidate.provenance.seed_ids == ("seed-2",)


def test_paraphrase_of_pairs_keeps_both_answers(make):
    generator = Paraphrase(count=4)
    candidates, _ = make(generator, [seed(0, "Hello?", "good", rejected="bad")])
    assert generator.makes_pairs(True) and not generator.makes_pairs(False)
    assert {(c.answer, c.rejected) for c in candidates} == {("good", "bad")} and len(candidates) == 4


def test_back_translation_goes_there_and_back(make, server):
    server.answer = lambda body: (
        "¿Cuánto es?" if "into Spanish" in asked(body) else f"back from {asked(body).splitlines()[-1]}"
    )
    candidates, _ = make(BackTranslation(), ADDITIONS[:2])
    assert [c.prompt for c in candidates] == ["back from ¿Cuánto es?"] * 2
    assert "into English" in candidates[0].provenance.prompt and "into Spanish" in candidates[0].provenance.prompt


def test_answers_to_training_prompts_with_examples(make, server):
    candidates, _ = make(Answers(num_shots=2, num_answers=3), ADDITIONS[:5])
    assert len(candidates) == 15 and len({c.answer for c in candidates}) == 15
    for body in server.calls:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert asked(body) not in [message["content"] for message in body["messages"][:-1]]  # never its own example
    assert all(len(c.messages) == 2 for c in candidates)  # the examples are not learned


def test_answers_to_given_prompts(tmp_path, make, server):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me {i}", "id": i}) + "\n" for i in range(4)))
    found = list(prompt_seeds(str(path), tmp_path, tmp_path))
    candidates, _ = make(Answers(path=str(path)), found)
    assert sorted(c.prompt for c in candidates) == [f"Tell me {i}" for i in range(4)]
    assert sorted(c.provenance.seed_ids[0] for c in candidates) == list("0123")


def test_rationales_stay_only_where_the_answer_is_right(make, server):
    def answer(body):
        number = int(re.search(r"is (\d+) plus", asked(body))[1])
        right = number % 2 == 0 and body["seed"] % 2 == 0
        return f"Thinking of {number} ({body['seed']}).\n#### {2 * number if right else 2 * number + 1}"

    server.answer = answer
    candidates, statistics = make(Rationales(FinalAnswer(), num_samples=6, num_shots=1, most_kept=1), ADDITIONS)
    assert candidates and all(c.answer.endswith(f"#### {2 * int(c.prompt.split()[2])}") for c in candidates)
    assert {int(c.prompt.split()[2]) % 2 for c in candidates} == {0}
    assert statistics["dropped"]["wrong answer"] + len(candidates) == 20
    assert all(c.prompt.endswith("?") and "step by step" not in c.prompt for c in candidates)
    for candidate in candidates:
        own = [b["seed"] % 2 == 0 for b in server.calls if asked(b).startswith(candidate.prompt)]
        assert candidate.scores["share_right"] == pytest.approx(sum(own) / 6)


def test_rationales_name_a_record_that_cannot_be_compared(make, server):
    with pytest.raises(DataError, match=r"the answer of record 'seed-19' cannot be compared: .*no number"):
        make(Rationales(FinalAnswer()), [*ADDITIONS[:19], seed(19, "Why?", "because")], "late")
    with pytest.raises(
        DataError, match=r"cannot be compared: FinalAnswer\.column='result': the record has the columns"
    ):
        make(Rationales(FinalAnswer("result")), ADDITIONS, "column")
    assert not server.calls
    with pytest.raises(DataError, match=r"the answer of record 'seed-0' cannot be compared: .*no number"):
        make(Rationales(FinalAnswer()), [seed(0, "Why?", "because")])


def test_class_balance_fills_what_is_short(make, server):
    texts = [seed(i, f"Text {i}", "good" if i < 6 else "bad" if i < 9 else "odd", kind=i % 2) for i in range(10)]
    candidates, statistics = make(ClassBalance(num_shots=2), texts)
    labels = [c.label for c in candidates]
    assert (labels.count("bad"), labels.count("odd"), labels.count("good")) == (3, 5, 0)
    assert all(c.answer == c.label for c in candidates) and statistics["num_tasks"] == 8
    shown = {"bad": {"Text 6", "Text 7", "Text 8"}, "odd": {"Text 9"}}
    for candidate in candidates:
        assert set(re.findall(r"Text \d", candidate.provenance.prompt)) <= shown[candidate.label]
    assert make(ClassBalance(column="kind", target=6), texts, "by_column")[1]["num_tasks"] == 2
    with pytest.raises(DataError, match="column='sort' is not in record"):
        make(ClassBalance(column="sort"), texts, "wrong")


def test_pairs_by_a_scorer(make, server):
    server.answer = lambda body: " ".join(["word"] * (1 + body["seed"] % 5))
    candidates, statistics = make(PreferencePairs(Length(5), count=60), ADDITIONS[:6])
    assert len(candidates) > 30 and all(len(c.answer.split()) > len(c.rejected.split()) for c in candidates)
    assert len(candidates) + statistics["dropped"]["two equal answers"] == 60
    one = candidates[0]
    assert one.scores["chosen_score"] == pytest.approx(len(one.answer.split()) / 5)
    apart, _ = make(PreferencePairs(Length(5), count=60, least_margin=0.5), ADDITIONS[:6], "apart")
    assert apart and all(c.scores["chosen_score"] - c.scores["rejected_score"] >= 0.5 for c in apart)


@pytest.mark.parametrize("habit", ["fair", "first", "silent"])
def test_pairs_by_a_judge_that_is_asked_in_both_orders(make, server, habit):
    def answer(body):
        if not asked(body).startswith("Which of two"):
            return words(body)
        a, b = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n", asked(body)).groups()
        assert body["temperature"] == 0
        return {"fair": "Answer A" if a > b else "B.", "first": "A", "silent": "Both are nice"}[habit]

    server.answer = answer
    candidates, statistics = make(PreferencePairs(), ADDITIONS[:10])
    if habit == "fair":
        assert len(candidates) == 10 and all(c.answer > c.rejected for c in candidates)
    else:
        reason = "the verdicts of both orders differ" if habit == "first" else "no verdict in the judge's reply"
        assert not candidates and statistics["dropped"] == {reason: 10}


def test_what_is_cut_off_is_dropped(make, server):
    server.fault = lambda body, attempt: lambda handler: send_json(handler, completion("half a", "length"))
    candidates, statistics = make(Answers(), ADDITIONS[:3])
    assert not candidates and statistics["dropped"] == {"cut off at max_new_tokens": 3}


def test_what_cannot_be_learned_from_is_dropped(make, server):
    server.answer = lambda body: {0: "fine", 1: "a<|im_end|>\n", 2: "a\0b"}[int(re.search(r"is (\d)", asked(body))[1])]
    candidates, statistics = make(Answers(), ADDITIONS[:3])
    assert [c.answer for c in candidates] == ["fine"] and statistics["dropped"] == {"cannot be learned from": 2}


def test_braces_are_left_alone(make, server):
    make(Paraphrase(template="{text} {other} {"), [seed(0, "f{x} {text}", "a")])
    assert asked(server.calls[0]) == "f{x} {text} {other} {"
    with pytest.raises(DataError, match=r"no place for \{text\}"):
        Paraphrase(template="Say it")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"top_p": 0}, {"max_new_tokens": 0}, {"temperature": -1}])
def test_bad_settings(wrong):
    with pytest.raises(DataError, match=f"Answers.{next(iter(wrong))}"):
        Answers(**wrong)


@pytest.mark.parametrize("place", [5, 0.2, 0.6, 0.99, "cut", "empty"])
def test_generated_records_that_a_disk_changed_are_made_anew_and_nobody_is_asked_again(
    place, make, server, tmp_path, capfd
):
    server.answer = lambda body: f"Reworded {asked(body)[-30:]}"
    before = make(Answers(), ADDITIONS)
    num_calls = len(server.calls)
    assert num_calls and before[0]
    (file,) = tmp_path.glob("generated/*/*.jsonl")
    data = file.read_bytes()
    if isinstance(place, str):
        file.write_bytes(data[: len(data) // 2] if place == "cut" else b"")
    else:
        at = place if isinstance(place, int) else int(place * len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
    assert make(Answers(), ADDITIONS) == before
    assert len(server.calls) == num_calls and file.read_bytes() == data
    assert capfd.readouterr().err.count("(generated records) is not as it was written: it is made anew") == 1
    assert make(Answers(), ADDITIONS) == before and "made anew" not in capfd.readouterr().err


def test_seeds_that_a_disk_changed_are_read_anew(tmp_path, capfd):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(30)))
    before = list(prompt_seeds(str(path), tmp_path / "seeds", tmp_path))
    (file,) = tmp_path.glob("seeds/*/*.arrow")
    data = file.read_bytes()
    at = data.index(b"What is 7?")
    file.write_bytes(data[:at] + b"w" + data[at + 1 :])
    assert list(prompt_seeds(str(path), tmp_path / "seeds", tmp_path)) == before and file.read_bytes() == data
    assert "(the seeds) is not as it was written" in capfd.readouterr().err
