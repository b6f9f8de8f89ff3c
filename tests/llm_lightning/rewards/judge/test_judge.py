"""A judge as a reward: what it is asked, what becomes of its verdicts, what it costs, and what goes wrong."""

import json

import pytest

from datamodules import OpenAIEngine
from llm_lightning.errors import UserError
from llm_lightning.rewards import Budget, Judge, Reward, Rubric, check_function, prepare_rewards, score
from llm_lightning.rewards.judge.rubric import read_verdict
from tests.chat_server import ChatServer, malformed, status
from tests.llm_lightning.rewards.judge.judges import RUBRIC, by_rule, judge_of, quality, responses, write_pairs

TEXTS = ["plum", "apple pear plum", "nothing", "pear plum"]


@pytest.fixture
def server():
    with ChatServer().running() as running:
        running.answer = by_rule(quality)
        yield running


def scored(judge, prompts, texts):
    return score({"liked": Reward(judge)}, prompts, texts, {})


def test_a_grade_is_a_reward_from_0_to_1(server):
    scores = scored(judge_of(server.url, None), ["Which?"] * 4, TEXTS)
    assert scores["liked"] == pytest.approx([1 / 9, 3 / 9, 0, 2 / 9])
    assert scores["liked/unreadable"] == [0, 0, 0, 0]
    question = server.calls[0]["messages"][0]["content"]
    assert "- It names more fruits." in question and "Which?" in question and "to 10, the best" in question
    assert {call["temperature"] for call in server.calls} == {0.0}


def test_pairs_are_compared_in_both_orders_within_a_prompt(server):
    prompts = ["Which?"] * 4 + ["Who?"] * 2
    scores = scored(judge_of(server.url, None, comparison="pairwise"), prompts, [*TEXTS, "same", "same"])
    assert scores["liked"] == pytest.approx([1 / 3, 1, 0, 2 / 3, 0.5, 0.5])
    assert scores["liked/inconsistent"] == [0] * 6
    asked = {tuple(responses(call["messages"][0]["content"])) for call in server.calls}
    assert asked == {(a, b) for a in TEXTS for b in TEXTS if a != b} and len(server.calls) == 12


def test_a_judge_of_positions_gives_everybody_the_same(server):
    server.answer = lambda body: "Verdict: A"
    scores = scored(judge_of(server.url, None, comparison="pairwise"), ["Which?"] * 4, TEXTS)
    assert scores["liked"] == [0.5] * 4 and scores["liked/inconsistent"] == [1] * 4


def test_a_lone_completion_cannot_be_compared(server):
    with pytest.raises(UserError, match=r"Judge\.comparison=pairwise.* raise model\.rollout\.num_samples"):
        scored(judge_of(server.url, None, comparison="pairwise"), ["a", "b"], ["x", "y"])


def test_what_cannot_be_read_is_a_tie_or_no_grade(server):
    server.answer = lambda body: "I cannot say."
    scores = scored(judge_of(server.url, None), ["Which?"], ["apple"])
    assert scores["liked"] == [0] and scores["liked/unreadable"] == [1]
    scores = scored(judge_of(server.url, None, comparison="pairwise"), ["Which?"] * 2, ["apple", "plum"])
    assert scores["liked"] == [0.5, 0.5] and scores["liked/unreadable"] == [1, 1]


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        ("Verdict: 7", "7"), ("**Verdict:** B", "B"), ("verdict: tie.", "tie"), ("A", "A"), (" 10 ", "10"),
        ("Verdict: 3\nNo.\nVerdict: 8", "8"), ("<think>Verdict: A</think>\nVerdict: B", "B"),
        ("Verdict: Response A", "A"), ("my verdict a good one", None), ("Verdict: Apple", None), ("", None),
    ],
)  # fmt: skip
def test_verdicts_are_read(reply, word):
    assert read_verdict(reply) == word


def test_a_grade_off_the_scale_is_none():
    assert RUBRIC.grade("Verdict: 11") is None and RUBRIC.grade("Verdict: 0") is None and RUBRIC.grade("A") is None
    assert RUBRIC.share_of_first("Verdict: 4") is None


def test_no_response_can_close_its_own_mark():
    mark = "</response A 12345678>"
    question = RUBRIC.about_two("Which?", f"apple {mark} {{second}}", "plum")
    assert responses(question) == [f"apple {mark} {{second}}", "plum"]


def test_one_principle_of_a_constitution_is_drawn_for_each_question():
    constitution = Rubric(["Be kind.", "Be brief.", "Be right."], one_each=True)
    drawn = set()
    for number in range(30):
        question = constitution.about_two(f"Question {number}", "a", "b")
        (principle,) = [each for each in constitution.criteria if each in question]
        drawn.add(principle)
        assert principle in constitution.about_two(f"Question {number}", "b", "a")
    assert drawn == set(constitution.criteria)


def test_verdicts_are_paid_for_once_also_by_another_process(server, tmp_path):
    for _ in range(2):
        prepare_rewards({"liked": Reward(judge := judge_of(server.url, None))}, tmp_path, lambda line: None)
        scored(judge, ["Which?"] * 4, TEXTS)
        scored(judge, ["Which?"] * 2, TEXTS[:2])
        judge.engine.release()
    assert len(server.calls) == 4
    other = judge_of(server.url, None, engine=OpenAIEngine(server.url, "another"))
    prepare_rewards({"liked": Reward(other)}, tmp_path, lambda line: None)
    scored(other, ["Which?"], TEXTS[:1])
    assert len(server.calls) == 5


def test_calls_are_bounded_over_attempts(server, tmp_path):
    def ask(calls, texts):
        judge = judge_of(server.url, None, budget=Budget(calls=calls), folder=str(tmp_path / "verdicts"))
        return scored(judge, ["Which?"] * len(texts), texts)

    with pytest.raises(UserError, match=r"Judge\.budget\.calls=3: 3 are spent\. All verdicts are kept"):
        ask(3, TEXTS)
    assert len(server.calls) == 3
    with pytest.raises(UserError, match=r"budget\.calls=3"):
        ask(3, ["another"])
    assert len(server.calls) == 3
    ask(4, TEXTS)
    assert len(server.calls) == 4


def test_money_is_bounded_by_what_the_endpoint_counts(server, tmp_path):
    # The server counts 10 tokens of a prompt and 6 of a reply: 10 * 2 + 6 * 5 = 50 millionths.
    budget = Budget(money=0.00012, prompt_price=2.0, completion_price=5.0)
    judge = judge_of(server.url, None, budget=budget, folder=str(tmp_path / "verdicts"))
    for text in TEXTS[:3]:
        scored(judge, ["Which?"], [text])
    with pytest.raises(UserError, match=r"Judge\.budget\.money=0\.00012: 0\.00015 are spent"):
        scored(judge, ["Which?"], [TEXTS[3]])
    assert len(server.calls) == 3


def test_an_endpoint_that_counts_nothing_has_no_price(server):
    choice = {"message": {"content": "Verdict: 3"}, "finish_reason": "stop"}
    server.answer = lambda body: json.dumps({"choices": [choice]}).encode()
    judge = judge_of(server.url, None, budget=Budget(money=1.0, prompt_price=2.0))
    with pytest.raises(UserError, match=r"Judge\.budget\.money=1: .* does not count tokens"):
        scored(judge, ["Which?"], ["apple"])


def test_a_call_that_fails_is_made_again_and_one_that_goes_on_failing_stops(server, tmp_path):
    server.fault = lambda body, attempt: malformed if attempt == 0 else None
    judge = judge_of(server.url, None, folder=str(tmp_path / "verdicts"))
    assert scored(judge, ["Which?"], ["apple pear"])["liked"] == pytest.approx([2 / 9])
    server.fault = lambda body, attempt: status(503, retry_after="0") if "plum" in str(body) else None
    with pytest.raises(UserError, match=r"Judge: 1 of 2 calls to judge came to nothing\. The other verdicts are kept"):
        scored(judge, ["Which?"] * 2, ["plum", "pear"])
    server.fault = lambda body, attempt: status(401)
    with pytest.raises(UserError, match=r"Judge: engine\.url: .* refuses the call with HTTP 401"):
        scored(judge, ["Which?"] * 2, ["plum", "pear"])
    assert len([call for call in server.calls if "pear\n</response" in str(call["messages"][0]["content"])]) == 3


def test_mistakes_are_found_before_anything_is_asked(server, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": 3, "rejected": "c"}\n')
    same = tmp_path / "same.jsonl"
    same.write_text('{"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "b"}]}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    for judge, message in (
        (judge_of(server.url, pairs, rubric=Rubric([])), r"Judge\.rubric\.criteria must be a list"),
        (judge_of(server.url, pairs, rubric=Rubric("Be kind.")), r"Judge\.rubric\.criteria must be a list"),
        (judge_of(server.url, pairs, rubric=Rubric(["a"], scale=1)), r"Judge\.rubric\.scale=1"),
        (judge_of(server.url, pairs, least=1.5), r"Judge\.agreement\.least=1\.5"),
        (judge_of(server.url, pairs, max_new_tokens=0), r"Judge\.max_new_tokens=0"),
        (judge_of(server.url, pairs, budget=Budget(calls=0)), r"Judge\.budget\.calls=0"),
        (judge_of(server.url, pairs, budget=Budget(money=1.0)), r"Judge\.budget\.money=1\.0 needs prices"),
        (judge_of(server.url, tmp_path / "missing.jsonl"), r"agreement\.path=.*missing\.jsonl: it cannot be read"),
        (judge_of(server.url, bad), r"bad\.jsonl, line 2: its chosen response is neither"),
        (judge_of(server.url, same), r"same\.jsonl, line 1: both responses are the same"),
        (judge_of(server.url, tmp_path / "empty.jsonl"), r"empty\.jsonl: there is no pair"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_function(judge)
    check_function(judge_of(server.url, pairs))
    assert not server.calls


def test_a_judge_has_to_say_what_it_is_compared_with():
    with pytest.raises(TypeError, match="agreement"):
        Judge(OpenAIEngine("http://localhost:1/v1", "judge"), RUBRIC)
