"""The log of calls: nothing is asked twice, and a torn end is cut off."""

import pytest

from datamodules.synthetic.calls import CachedEngine, CallLog
from datamodules.synthetic.engine import Request
from datamodules.synthetic.openai_engine import OpenAIEngine
from tests.chat_server import ChatServer


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


def requests(*numbers):
    return [Request(({"role": "user", "content": f"Question {i}"},), seed=1) for i in numbers]


def test_what_was_noted_is_there_again(tmp_path):
    with CallLog(tmp_path / "calls" / "log") as log:
        log.put("a", ["one\ntwo", 3])
        log.put("b", 2.5)
        assert log.get("a") == ["one\ntwo", 3] and log.get("c") is None
        log.put("c", "é\ud800")
        assert log.get("c") == "é\ud800"
    with CallLog(tmp_path / "calls" / "log") as log:
        assert len(log) == 3 and log.get("b") == 2.5


def test_every_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "log"
    with CallLog(path) as log:
        log.put("a", "first")
        whole = path.read_bytes()
        log.put("b", "second")
        both = path.read_bytes()
    for cut in range(len(whole), len(both)):
        path.write_bytes(both[:cut])
        with CallLog(path) as log:
            assert log.get("a") == "first" and log.get("b") is None
            log.put("b", "again")
            assert log.get("b") == "again"
        with CallLog(path) as log:
            assert len(log) == 2 and log.get("b") == "again"


def test_known_calls_are_not_made_again(tmp_path, server):
    with CallLog(tmp_path / "log") as log:
        first = dict(CachedEngine(OpenAIEngine(server.url, "m"), log).write(requests(1, 2, 2, 3)))
    assert len(server.calls) == 3 and first[1] == first[2]
    with CallLog(tmp_path / "log") as log:
        engine = CachedEngine(OpenAIEngine(server.url, "m"), log)
        again = dict(engine.write(requests(4, 3, 2)))
        assert len(server.calls) == 4 and (again[1], again[2]) == (first[3], first[1])
        other = CachedEngine(OpenAIEngine(server.url, "m2"), log)
        assert len(list(other.write(requests(3)))) == 1 and len(server.calls) == 5  # another model


def test_a_call_with_a_flipped_bit_is_asked_again_and_no_other(tmp_path, server, capfd):
    path = tmp_path / "log"
    with CallLog(path) as log:
        first = dict(CachedEngine(OpenAIEngine(server.url, "m"), log).write(requests(1, 2, 3)))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for place in (2, 20, 60, len(lines[1]) - 3):  # its checksum, its key, its value
        at = len(lines[0]) + place
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        num_calls = len(server.calls)
        capfd.readouterr()
        with CallLog(path) as log:
            assert len(log) == 2
            assert "1 calls in" in capfd.readouterr().err
            again = dict(CachedEngine(OpenAIEngine(server.url, "m"), log).write(requests(1, 2, 3)))
        assert again == first and len(server.calls) == num_calls + 1


def test_a_log_from_before_there_were_checksums_is_gone_on_with(tmp_path, server):
    path = tmp_path / "log"
    with CallLog(path) as log:
        first = dict(CachedEngine(OpenAIEngine(server.url, "m"), log).write(requests(1, 2)))
    path.write_bytes(b"".join(line.partition(b" ")[2] for line in path.read_bytes().splitlines(keepends=True)))
    with CallLog(path) as log:
        assert dict(CachedEngine(OpenAIEngine(server.url, "m"), log).write(requests(1, 2))) == first
    assert len(server.calls) == 2
