"""HTTP calls to servers that are not trusted: each ends in time, and no reply takes more memory than its bound.

The `openai` client (3.57 was read) would take over only the wait between two tries: it follows redirects by default,
bounds neither the time of a whole call nor the size of a reply, and does not repeat a call whose reply cannot be read.
"""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

MOST_BYTES = 8 * 2**20
"""Of a reply, unpacked too: 32,000 tokens of Chinese take about one megabyte, and parsed JSON some times more."""


class HttpReply(NamedTuple):
    """What came back, whatever its status."""

    status: int
    headers: httpx.Headers
    content: bytes


class CallError(Exception):
    """No reply came that can be used; the reason in words."""


class BoundedClient:
    """Calls that run at the same time in one thread.

    httpx limits the wait for each piece of a reply, so that one of a byte a second never ends; here the limit is that
    of the whole call, from the look-up of the host's name on. Redirects are not followed: the key would go with them.

    Args:
        headers: of each call.
        timeout: seconds that a call may take.
        num_connections: calls at the same time.
    """

    def __init__(self, headers: dict[str, str], timeout: float, num_connections: int) -> None:
        import httpx

        limits = httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
        wanted = headers | {"Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(headers=wanted, timeout=timeout, limits=limits, follow_redirects=False)
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http calls", daemon=True)
        self._thread.start()

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it in the thread; a future that is cancelled ends it."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    async def post(self, url: str, body: dict[str, Any]) -> HttpReply:
        """The reply to a body of JSON; to be awaited in `submit`.

        Raises:
            CallError: no connection, no whole reply in time, one that is cut off, too long or not to be unpacked.
        """
        import httpx

        try:
            async with asyncio.timeout(self._timeout), self._client.stream("POST", url, json=body) as response:
                return HttpReply(response.status_code, response.headers, await _content(response))
        except TimeoutError:
            raise CallError(f"no whole reply within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, zlib.error) as error:
            raise CallError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End what runs, and close the connections."""
        self.submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()


def parsed(content: bytes) -> Any:
    """What JSON says, without the constants that JSON does not have.

    Raises:
        CallError: it is no JSON, or is nested deeper than can be read.
    """
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CallError(f"a reply that cannot be read ({type(error).__name__}: {error})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


async def _content(response: httpx.Response) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
        raise CallError(f"a reply in {encoding[:40]!r}, which was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("identity", "") else None
    content = bytearray()
    async for piece in response.aiter_raw():
        # One byte more than may be, so that it is seen.
        content += unpack.decompress(piece, MOST_BYTES + 1 - len(content)) if unpack else piece
        if len(content) > MOST_BYTES:
            raise CallError(f"a reply of more than {MOST_BYTES:,} bytes")
    if unpack and not unpack.eof:
        raise CallError("a packed reply that is cut off")
    return bytes(content)
