"""An endpoint over real HTTP: what passes is tried again, what does not ends at once, and nothing is lost."""

import gzip
import itertools
import json
import os
import re
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
     ("nan", None), ("inf", 60.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
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


def dripping(at_once, dripped):
    """A byte now and then: no single wait is long."""

    def fault(handler):
        handler.wfile.write(at_once)
        for byte in dripped:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)

    return fault


def counting(**usage):
    answer = json.loads(completion("good")) | {"usage": usage}
    return lambda handler: send_json(handler, json.dumps(answer).encode())


def sending(payload, **headers):
    return lambda handler: send_json(handler, payload, **headers)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    for _ in range(3000):
        handler.wfile.write(b" " * 2**20)
    raise AssertionError("three gigabytes were read")


OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE = {
    "drips its body": (dripping(OK + b"Content-Length: 400\r\n\r\n", b" " * 400), "no whole reply within 0.8 s"),
    "drips its headers": (dripping(OK, b"X: y\r\n" * 50), "no whole reply within 0.8 s"),
    "drips without a length": (dripping(OK + b"Connection: close\r\n\r\n", b" " * 400), "no whole reply within 0.8 s"),
    "speaks no HTTP": (dripping(b"x\x1b[2J" * 10**4 + b"\r\n\r\n", b""), "illegal status line"),
    "nests lists": (sending(b"[" * 10**6), "RecursionError"),
    "nests objects": (sending(b'{"a":' * 10**5), "RecursionError"),
    "counts Infinity": (counting(total_tokens=float("inf")), "Infinity is no JSON"),
    "counts NaN": (counting(completion_tokens=float("nan")), "NaN is no JSON"),
    "counts 1e999": (sending(completion("good").replace(b"16", b"1e999")), "counts inf tokens"),
    "counts less than none": (counting(total_tokens=-5), "counts -5 tokens"),
    "counts too much": (counting(completion_tokens=10**30), "counts 1000000000000000000000000000000 tokens"),
    "counts with text": (counting(total_tokens="many"), "counts many tokens"),
    "counts with 5,000 digits": (sending(completion("good").replace(b"16", b"1" * 5000)), "cannot be read"),
    "is a list": (sending(b"[1]"), "no chat completion"),
    "is no UTF-8": (sending(b'{"choices": "\xff"}'), "cannot be read"),
    "says that it has 3 GB": (dripping(OK + b"Content-Length: 3221225472\r\n\r\n", b" " * 400), "within 0.8 s"),
    "never ends": (endless, "more than 8,388,608 bytes"),
    "unpacks to 100 MB": (sending(gzip.compress(bytes(10**8)), Content_Encoding="gzip"), "more than 8,388,608 bytes"),
    "is packed and cut": (sending(gzip.compress(completion("good"))[:-9], Content_Encoding="gzip"), "cut off"),
    "is not what it says": (sending(completion("good"), Content_Encoding="gzip"), "incorrect header check"),
    "comes in brotli": (sending(b"?", Content_Encoding="br"), "a reply in 'br', which was not asked for"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reply_costs_one_try(server, name):
    fault, reason = HOSTILE[name]
    server.fault = lambda body, attempt: fault if attempt == 0 or body["seed"] == 1 else None
    engine = OpenAIEngine(server.url, "m", timeout=0.8 if "within" in reason else 10, max_retries=1)
    with pytest.warns(UserWarning, match=f"given up after 2 tries: .*{re.escape(reason)}") as given_up:
        replies = dict(engine.write(requests(2)))
    engine.release()
    assert list(replies) == [0] and engine.num_tokens == 16
    assert all(len(str(one.message)) < 500 and "\x1b" not in str(one.message) for one in given_up)


def test_a_reply_in_gzip_is_read(server):
    server.fault = lambda body, attempt: sending(gzip.compress(completion("good")), Content_Encoding="gzip")
    assert next(OpenAIEngine(server.url, "m").write(requests(1)))[1].text == "good"


@pytest.mark.parametrize("code", [301, 307, 308])
def test_the_key_goes_nowhere_else(server, monkeypatch, code):
    monkeypatch.setenv("MY_KEY", "secret-123")
    with ChatServer().running() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        server.fault = lambda body, attempt: status(code, Location=f"{elsewhere}/chat/completions")
        with pytest.raises(DataError, match=f"HTTP {code} and points to {elsewhere}/chat/completions, where no key is"):
            list(OpenAIEngine(server.url, "m", "MY_KEY").write(requests(1)))
        assert not other.calls


def test_a_refusal_cannot_steer_the_terminal(server):
    said = b"no\x1b[2J\x07\r\n such\xe2\x80\xaemodel" + b"!" * 10**6
    server.fault = lambda body, attempt: lambda handler: send_json(handler, said, 404)
    with pytest.raises(DataError, match=r"HTTP 404: no \[2J such model!{10,300}$"):
        list(OpenAIEngine(server.url, "m").write(requests(1)))


def test_a_key_that_cannot_be_sent(monkeypatch):
    for key in ("secret-123\n", "sécret", "two words"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(DataError, match="MY_KEY holds no key that can be sent") as caught:
            OpenAIEngine("http://x/v1", "m", "MY_KEY").check()
        assert key.strip() not in str(caught.value)


def test_who_stops_listening_ends_the_calls(server):
    server.fault = lambda body, attempt: hang(5) if body["seed"] else None
    engine = OpenAIEngine(server.url, "m", concurrency=4)
    replies = engine.write(requests(20))
    next(replies)
    started = time.monotonic()
    replies.close()
    engine.release()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost"}, "no address"),
        ({"url": "http://me:secret@x/v1"}, "a name or a password"),
        ({"url": "http://"}, "names no host"),
        ({"url": "http://x:99999999/v1"}, "names no host, or a port that there is not"),
        ({"url": "http://[::1/v1"}, "names no host"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(DataError, match=words):
        OpenAIEngine(**({"url": "http://x", "model_name": "m"} | settings))
