"""Texts from any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.engine import Engine, Reply, Request
from datamodules.texts import encodable

if TYPE_CHECKING:
    import httpx

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first retry, doubled for each further one, and at most."""

PASSING = {408, 409, 425, 429, *range(500, 600)}
"""HTTP states that another try can mend."""


class Failed(Exception):  # noqa: N818 (it is caught here, and never seen)
    """A try that another one can mend.

    Args:
        reason: in words.
        wait: seconds that the endpoint asks to wait; None where it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class OpenAIEngine(Engine):
    """Asks an endpoint with OpenAI's `/chat/completions`: OpenAI's own, vLLM, llama.cpp, Ollama and many others.

    A call that fails for a reason that may pass (429, 5xx, no answer in time, a reply that cannot be read) is made
    again, each time after twice as long a wait with jitter, or when the endpoint says (`Retry-After`). One that fails
    to the end is given up and counted, and the next run makes it again. What the endpoint refuses (400, 401, 404) ends
    the run at once, since it would refuse all.

    Args:
        url: up to the version, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        model_name: the endpoint's name of the model.
        api_key_variable: the environment variable that holds the key. The key itself is in no setting, file or log.
        concurrency: calls at the same time, of this process.
        timeout: seconds until an answer has to be there.
        max_retries: further tries of a call.
        token_budget: tokens of prompts and answers, as the endpoint counts them, after which this process makes no
            further call. What was written by then is kept; the same command with a higher budget goes on.
        extra: what else goes into every call, such as `{top_k: 50}`.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        api_key_variable: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_retries: int = 6,
        token_budget: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise DataError(f"engine.url: {url!r} is no address; it begins with http:// or https://")
        if "@" in url.partition("//")[2].partition("/")[0]:
            raise DataError("engine.url: it holds a name or a password; name the variable that holds a key instead")
        for name, value, least in (("concurrency", concurrency, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise DataError(f"engine.{name}: it must be at least {least}, not {value}")
        if timeout <= 0 or (token_budget is not None and token_budget <= 0):
            raise DataError("engine.timeout and engine.token_budget: they must be above 0")
        self.url = url
        self.model_name = model_name
        self.api_key_variable = api_key_variable
        self.concurrency = concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.token_budget = token_budget
        self.extra = extra or {}
        self.num_tokens = 0
        self._failures = 0
        self._counting = threading.Lock()

    @property
    def model(self) -> str:
        """The endpoint's name, and what goes into every call."""
        return " ".join([self.model_name, *(f"{name}={value}" for name, value in sorted(self.extra.items()))])

    def check(self) -> None:
        """Raises `DataError` where the key is missing; nothing is called."""
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            raise DataError(f"engine.api_key_variable: the environment has no {self.api_key_variable}; export the key")

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        self.check()
        key = os.environ[self.api_key_variable] if self.api_key_variable else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        return httpx.Client(headers=headers, timeout=self.timeout, limits=limits)

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """See `Engine`.

        Raises:
            DataError: the endpoint refuses the call, nothing comes of any call, or the budget is spent.
        """
        _ = self._client
        waiting = iter(enumerate(requests))
        running: dict[Future[Reply], int] = {}
        problem: DataError | None = None
        self._stop = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while problem is None and len(running) < self.concurrency and (one := next(waiting, None)):
                        if (problem := self._budget_spent()) is None:
                            running[pool.submit(self._reply, one[1])] = one[0]
                    if not running:
                        break
                    # After a problem too: these answers are paid for.
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        place = running.pop(future)
                        try:
                            yield place, future.result()
                            self._failures = 0
                        except Failed as failed:
                            problem = problem or self._given_up(failed)
                        except DataError as refused:
                            problem = problem or refused
            finally:
                self._stop.set()  # a consumer that stops ends the waits before retries too
        if problem is not None:
            raise problem

    def _given_up(self, failed: Failed) -> DataError | None:
        """Count it; what to raise where nothing comes of any call."""
        self._failures += 1
        rank_zero_warn(f"A call to {self.url} was given up after {self.max_retries + 1} tries: {failed}")
        if self._failures < max(8, self.concurrency):
            return None
        return DataError(
            f"engine.url: {self._failures} calls to {self.url} in a row came to nothing; the last: {failed}. "
            "What was written is kept: the same command goes on"
        )

    def _budget_spent(self) -> DataError | None:
        if self.token_budget is None or self.num_tokens < self.token_budget:
            return None
        return DataError(
            f"engine.token_budget: {self.num_tokens:,} tokens are spent of {self.token_budget:,}. What was written is "
            "kept; a higher budget goes on from there"
        )

    def _reply(self, request: Request) -> Reply:
        body = {
            "model": self.model_name, "messages": list(request.messages), "seed": request.seed,
            "temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_new_tokens,
        }  # fmt: skip
        for retry in range(self.max_retries + 1):
            try:
                return self._try(body | self.extra)
            except Failed as failed:
                if retry == self.max_retries:
                    raise
                longest = min(LONGEST_WAIT, FIRST_WAIT * 2**retry)
                pause = random.uniform(longest / 2, longest) if failed.wait is None else failed.wait
                if self._stop.wait(pause):
                    raise
        raise AssertionError

    def _try(self, body: dict[str, Any]) -> Reply:
        import httpx

        try:
            response = self._client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        except httpx.HTTPError as error:  # no connection, no answer in time, cut off
            raise Failed(f"{type(error).__name__}: {error}") from error
        if response.status_code in PASSING:
            raise Failed(f"HTTP {response.status_code}", seconds_to_wait(response.headers.get("retry-after")))
        if response.status_code != 200:
            said = re.sub(r"\s+", " ", response.text)[:300]
            raise DataError(f"engine.url: {self.url} refuses the call with HTTP {response.status_code}: {said}")
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            usage = answer.get("usage") or {}
            num_tokens, total = int(usage.get("completion_tokens", 0)), int(usage.get("total_tokens", 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Failed(f"a reply that cannot be read ({type(error).__name__}: {error})") from error
        if not isinstance(text, str):
            raise Failed("a reply without text")
        with self._counting:
            self.num_tokens += total
        return Reply(encodable(text), num_tokens, finish == "stop")

    def perplexities(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Raise `DataError`: chat completions do not say how probable a given text is."""
        raise DataError(
            "engine: an OpenAI-compatible endpoint cannot tell the perplexity of a text: leave that filter out, or "
            "let a LocalEngine write"
        )

    def settings(self) -> dict[str, Any]:
        """All but the key."""
        names = ("url", "model_name", "concurrency", "timeout", "max_retries", "token_budget", "extra")
        return {"engine": type(self).__name__} | {name: getattr(self, name) for name in names}

    def release(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self._client.close()
            del self.__dict__["_client"]


def seconds_to_wait(header: str | None) -> float | None:
    """What `Retry-After` says, in seconds or as a date, at most `LONGEST_WAIT`; None where it says nothing usable."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(LONGEST_WAIT, max(0.0, seconds))
