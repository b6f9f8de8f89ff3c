"""A real web server of files, on this machine, that can be told to fail."""

import contextlib
import hashlib
import http.server
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

Fault = Callable[["Handler", str, int], bool]
"""From the handler, the file's name and how often it was asked for: whether this took care of the answer."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers HEAD and GET of files, with ranges, and of folders by links."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        name = self.path.partition("?")[0].lstrip("/")
        server = self.server
        if with_body:
            with server.counting:
                server.asked[name] += 1
        server.paths.append(self.path)
        if with_body and server.fault is not None and server.fault(self, name, server.asked[name]):
            return
        path = server.folder / name
        if path.is_dir():
            links = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in sorted(path.iterdir()))
            self.send(200, links.encode(), with_body)
        elif not path.exists():
            self.send(404, b"", with_body)
        else:
            self.send_file(path.read_bytes(), with_body)

    def send_file(self, data, with_body):
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'} if self.server.marks else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not self.server.ranges:
            self.send(200, data, with_body, headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.send(206, data[start:stop], with_body, headers)

    def send(self, status, body, with_body, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if with_body:
            with contextlib.suppress(OSError):
                self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        fault: what goes wrong; None: nothing.
        ranges: whether it can begin in the middle of a file.
        marks: whether it tells an ETag.
        asked: how often the body of each file was asked for.
        paths: of all requests, with their queries.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fault: Fault | None = None
        self.ranges = self.marks = True
        self.asked: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.paths: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self.shutdown()
            self.server_close()

    def hang(self) -> None:
        """Until the test ends."""
        self.ended.wait(60)


def fails(status: int, times: int) -> Fault:
    """The first so many requests of each file."""

    def fault(handler, name, asked):
        if asked > times or not handler.server.folder.joinpath(name).is_file():
            return False
        handler.send(status, b"", True)
        return True

    return fault


def hangs(times: int) -> Fault:
    """The first so many requests of each file get no answer."""

    def fault(handler, name, asked):
        if asked > times or not handler.server.folder.joinpath(name).is_file():
            return False
        handler.server.hang()
        handler.close_connection = True
        return True

    return fault


def cuts(times: int) -> Fault:
    """The first so many answers end in the middle."""

    def fault(handler, name, asked):
        path = handler.server.folder / name
        if asked > times or not path.is_file():
            return False
        data = path.read_bytes()
        handler.send(200, data[: len(data) // 2], True, length=len(data))
        handler.close_connection = True
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Each file is late."""

    def fault(handler, name, asked):
        time.sleep(seconds)
        return False

    return fault
