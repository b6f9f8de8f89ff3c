"""Answers that are expressions, by math-verify in a process of its own."""

import importlib.util
import threading
import time

import pytest

from llm_lightning.errors import UserError
from llm_lightning.rewards import MathAnswer, RecordCheck, Reward

needs_math_verify = pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="needs math-verify")


@pytest.fixture(scope="module")
def reward():
    return MathAnswer()


def scores(reward, completions, answer):
    return reward([""] * len(completions), completions, {"answer": [answer] * len(completions)})


@needs_math_verify
@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("2\\sqrt{3}", "so \\boxed{\\sqrt{12}}", "\\boxed{2}"),
        ("\\frac{\\pi}{2}", "it is $\\pi/2$", "\\boxed{2}"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}", "\\boxed{(x-1)^2}"),
        ("Thus \\boxed{(1, 2)}", "\\boxed{(1,2)}", "\\boxed{(2,1)}"),
        ("\\{1, 2\\}", "\\boxed{\\{2, 1\\}}", "\\boxed{\\{1, 3\\}}"),
        ("18", "#### -(-18) = 18", "\\boxed{\\sqrt{18}}"),
        ("1.000,50", "\\boxed{1000.5}", "\\boxed{1000}"),
        (7, "\\boxed{7}", "\\boxed{8}"),
    ],
)
def test_mathematics_is_compared_and_not_spelling(reward, answer, right, wrong):
    assert scores(reward, [right, wrong, ""], answer) == [1, 0, 0]


@needs_math_verify
def test_what_would_take_forever_is_wrong_and_the_next_is_compared():
    reward = MathAnswer(timeout=2)
    reward._compare("$1$", "$1$")
    started = time.monotonic()
    assert scores(reward, ["\\boxed{9^{9^{9^{9}}}}"], "2\\sqrt{3}") == [0]
    assert scores(reward, ["9**9**9**9**9 " * 50], "2\\sqrt{3}") == [0]
    assert time.monotonic() - started < 60
    assert scores(reward, ["\\boxed{\\sqrt{12}}"], "2\\sqrt{3}") == [1]
    reward._process.kill()
    assert scores(reward, ["\\boxed{\\sqrt{12}}"] * 2, "2\\sqrt{3}")[1] == 1


@needs_math_verify
def test_it_runs_in_any_thread(reward):
    results = []
    ask = lambda: results.append(scores(reward, ["\\boxed{\\sqrt{12}}"], "2\\sqrt{3}"))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1.0]] * 3


@needs_math_verify
def test_nothing_is_run_that_a_policy_writes(reward, tmp_path):
    planted = tmp_path / "planted"
    code = f"__import__('pathlib').Path('{planted}').touch()"
    for text in (code, f"${code}$", f"\\boxed{{{code}}}", f"Answer: 1+1*({code})"):
        assert scores(reward, [text], "2\\sqrt{3}") == [0]
    assert not planted.exists()


@needs_math_verify
def test_records_that_cannot_be_judged(reward):
    check = RecordCheck({"correct": Reward(reward)})
    assert check({"answer": "\\frac{\\pi}{2}"}) is None
    assert "MathAnswer.column='answer': the record has the columns (none)" in check({})
    for answer in (None, "", " ", True, ["1"], "the cat"):
        assert f"holds {'words (the, cat)' if answer == 'the cat' else 'nothing'}" in check({"answer": answer})
    for answer in ("5 or 7", "2\\sin x", "\\text{no} 3x", "The roots are $x$ and $y$", "The answer\n#### x+1"):
        assert check({"answer": answer}) is None
    with pytest.raises(ValueError, match="holds no answer"):
        scores(reward, ["1"], None)


def test_where_math_verify_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-lightning\[math\]'"):
        MathAnswer().check()
    with pytest.raises(UserError, match="MathAnswer needs math-verify"):
        scores(MathAnswer(), ["\\boxed{1+x}"], "x+1")
    with pytest.raises(UserError, match=r"MathAnswer\.timeout=0\.5"):
        MathAnswer(timeout=0.5)
