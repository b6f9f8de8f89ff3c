"""An endpoint over real HTTP: what passes is tried again, what does not ends at once, and nothing is lost."""

import itertools
import os
import time

import pytest

import datamodules.synthetic.openai_engine as module
from datamodules.errors import DataError
from datamodules.synthetic.engine import Request
from datamodules.synthetic.openai_engine import OpenAIEngine, seconds_to_wait
from tests.chat_server import ChatServer, completion, cut_off, hang, malformed, send_json, status, without_choices


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.02)


def requests(count):
    return [Request(({"role": "user", "content": f"Question {i}"},), seed=i) for i in range(count)]


FAULTS = [status(429), status(500), status(503), hang(0.6), malformed, without_choices, cut_off]


def test_every_reply_arrives_whatever_goes_wrong_in_between(server):
    chosen = itertools.cycle(FAULTS)
    faults = {i: [next(chosen), next(chosen)] for i in range(0, 40, 2)}

    def fault(body, attempt):
        mine = faults.get(body["seed"], [])
        return mine[attempt] if attempt < len(mine) else None

    server.fault = fault
    engine = OpenAIEngine(server.url, "m", concurrency=8, timeout=0.3)
    replies = dict(engine.write(requests(40)))
    engine.release()
    assert sorted(replies) == list(range(40))
    assert all(reply.is_finished and reply.num_tokens == 6 for reply in replies.values())
    assert len(server.calls) == 40 + 2 * 20  # each fault cost one try
    assert 1 < server.most_at_once <= 8


def test_it_waits_as_long_as_the_endpoint_says(server):
    server.fault = lambda body, attempt: status(429, Retry_After="1") if attempt == 0 else None
    engine = OpenAIEngine(server.url, "m")
    assert len(list(engine.write(requests(1)))) == 1
    assert server.times[1] - server.times[0] >= 1


def test_waits_grow_with_jitter(server):
    server.fault = lambda body, attempt: status(500) if attempt < 4 else None
    assert len(list(OpenAIEngine(server.url, "m").write(requests(1)))) == 1
    waits = [b - a for a, b in itertools.pairwise(server.times)]
    for retry, wait in enumerate(waits):
        assert 0.01 * 2**retry <= wait < 0.02 * 2**retry + 0.15


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("999999", 60.0), ("-2", 0.0), ("soon", None), ("", None), (None, None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(header, seconds):
    assert seconds_to_wait(header) == seconds


def test_what_fails_to_the_end_is_given_up_and_the_rest_arrives(server):
    server.fault = lambda body, attempt: status(500) if body["seed"] == 3 else None
    with pytest.warns(UserWarning, match="given up after 3 tries: HTTP 500"):
        replies = dict(OpenAIEngine(server.url, "m", max_retries=2).write(requests(10)))
    assert sorted(replies) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.filterwarnings("ignore:A call to")
def test_a_dead_endpoint_ends_with_one_error(server):
    server.fault = lambda body, attempt: status(503)
    with pytest.raises(DataError, match=r"8 calls to .* in a row came to nothing; the last: HTTP 503"):
        list(OpenAIEngine(server.url, "m", concurrency=2, max_retries=1).write(requests(100)))
    assert len(server.calls) < 40


def test_no_server_at_all():
    engine = OpenAIEngine("http://127.0.0.1:9/v1", "m", concurrency=1, max_retries=0)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="came to nothing; the last: ConnectError"):
        list(engine.write(requests(100)))


def test_a_refusal_ends_at_once_and_answers_under_way_still_arrive(server):
    server.fault = lambda body, attempt: (
        (lambda handler: send_json(handler, b'{"error": "no such model"}', 404)) if body["seed"] == 2
        else (lambda handler: (time.sleep(0.2), send_json(handler, completion("late")))[0])
    )  # fmt: skip
    arrived = []
    with pytest.raises(DataError, match=r'HTTP 404: \{"error": "no such model"\}'):
        for place, _ in OpenAIEngine(server.url, "m", concurrency=4).write(requests(50)):
            arrived.append(place)
    assert sorted(arrived) == [0, 1, 3] and len(server.calls) == 4


def test_the_token_budget_ends_the_calls_and_keeps_what_came(server):
    arrived = []
    with pytest.raises(DataError, match=r"token_budget: 1\d\d tokens are spent of 100"):
        for place, _ in OpenAIEngine(server.url, "m", concurrency=2, token_budget=100).write(requests(50)):
            arrived.append(place)
    assert len(arrived) == len(server.calls) == 100 // 16 + 1 + 1  # 16 tokens a call; one more was under way


def test_the_key_comes_from_the_environment_alone(server, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", "secret-123")
    server.fault = lambda body, attempt: status(500) if attempt == 0 else None
    engine = OpenAIEngine(server.url, "m", "MY_KEY", extra={"top_k": 5})
    assert len(list(engine.write(requests(2)))) == 2
    assert set(server.keys) == {"Bearer secret-123"} and server.calls[0]["top_k"] == 5
    shown = str(engine.settings()) + str(vars(engine)) + engine.model + "".join(capfd.readouterr())
    assert "secret-123" not in shown
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(DataError, match="the environment has no MY_KEY"):
        OpenAIEngine(server.url, "m", "MY_KEY").check()
    assert "MY_KEY" not in os.environ


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost"}, "no address"),
        ({"url": "http://me:secret@x/v1"}, "a name or a password"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(DataError, match=words):
        OpenAIEngine(**({"url": "http://x", "model_name": "m"} | settings))
