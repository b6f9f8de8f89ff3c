"""A chat-completions endpoint on localhost: real HTTP, with answers and faults that a test decides."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with the usual 5 the system resets connections of clients that come all at once
    daemon_threads = True


class ChatServer:
    """Answers every call by `answer`, but for the tries for which `fault` names something else.

    Attributes:
        calls: the bodies of all calls, and when they came.
        answer: from a body to the text, or to a whole reply in bytes.
        fault: from a body and the number of its try (from 0) to what is sent instead; None for the answer.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[dict[str, Any]], str | bytes] = words
        self.fault: Callable[[dict[str, Any], int], Fault | None] = lambda body, attempt: None
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    attempt = server.calls.count(body)
                    server.calls.append(body)
                    server.times.append(time.monotonic())
                    server.keys.append(self.headers.get("Authorization"))
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    fault = server.fault(body, attempt)
                    if fault is None:
                        answer = server.answer(body)
                        send_json(self, answer if isinstance(answer, bytes) else completion(answer))
                    else:
                        fault(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with server._lock:
                        server._now -= 1

            def log_message(self, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed here
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def words(body: dict[str, Any]) -> str:
    """Six words that depend on the whole call."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    vocabulary = ("apple", "bridge", "cloud", "door", "engine", "forest", "glass", "hill")
    return " ".join(vocabulary[byte % 8] for byte in digest[:6])


def completion(text: str, finish: str = "stop") -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def send_json(handler: BaseHTTPRequestHandler, payload: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(payload)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(payload)


def status(code: int, **headers: str) -> Fault:
    return lambda handler: send_json(handler, b'{"error": "no"}', code, **headers)


def hang(seconds: float) -> Fault:
    return lambda handler: time.sleep(seconds)


def malformed(handler: BaseHTTPRequestHandler) -> None:
    send_json(handler, b'{"choices": [{"message": {"cont')


def without_choices(handler: BaseHTTPRequestHandler) -> None:
    send_json(handler, b'{"choices": []}')


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True
