"""Texts from any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.errors import DataError
from datamodules.sources.surrogates import encodable
from datamodules.synthetic.bounded_http import BoundedClient, CallError, HttpReply, parsed
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.endpoints.replies import LikelyTokens, read_reply, read_token_logprobs
from datamodules.synthetic.engine import Engine, Reply, Request
from llm_lightning_safety.redaction import redact, remember

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first retry, doubled for each further one, and at most."""

PASSING = {408, 409, 425, 429, *range(500, 600)}
"""HTTP states that another try can mend."""


A = TypeVar("A")
R = TypeVar("R")


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

    A call that fails for a reason that may pass (429, 5xx, no whole response in time, a reply that cannot be read,
    counts nonsense or has more than 8 MB) is made again, each time after twice as long a wait with jitter, or when the
    endpoint says (`Retry-After`). One that fails to the end is given up and counted, and the next run makes it again.
    What the endpoint refuses (400, 401, 404, a redirect) ends the run at once, since it would refuse all.

    Args:
        url: up to the version, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        model_name: the endpoint's name of the model.
        api_key_variable: the environment variable that holds the key. The key itself is in no setting, file or log.
        concurrency: calls at the same time, of this process.
        timeout: seconds until the whole response has to be there.
        max_retries: further tries of a call.
        token_budget: tokens of prompts and completions, as the endpoint counts them, after which this process makes no
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
        try:
            has_host = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
        except ValueError:
            has_host = False
        if not has_host:
            raise DataError(f"engine.url: {url!r} names no host, or a port that there is not")
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

    @property
    def model(self) -> str:
        """The endpoint's name, and what goes into every call; secrets are no part of it."""
        return " ".join([self.model_name, *(f"{name}={value}" for name, value in sorted(redact(self.extra).items()))])

    def check(self) -> None:
        """Raises `DataError` where the key is missing, or cannot be sent; nothing is called."""
        if not self.api_key_variable:
            return
        key = os.environ.get(self.api_key_variable)
        if not key:
            raise DataError(f"engine.api_key_variable: the environment has no {self.api_key_variable}; export the key")
        if not re.fullmatch("[!-~]+", key):
            raise DataError(
                f"engine.api_key_variable: {self.api_key_variable} holds no key that can be sent: there is a blank, a "
                "line break or a character beyond ASCII in it"
            )

    @cached_property
    def _client(self) -> BoundedClient:
        self.check()
        key = os.environ[self.api_key_variable] if self.api_key_variable else ""
        # An endpoint may repeat them in its response.
        remember({"api_key": key, "url": self.url, "extra": self.extra})
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return BoundedClient(headers, self.timeout, self.concurrency)

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """See `Engine`.

        Raises:
            DataError: the endpoint refuses the call, nothing comes of any call, or the budget is spent.
        """
        return self._each(requests, self._reply)

    def token_logprobs(self, prompts: Sequence[Sequence[int]], top_k: int) -> Iterator[tuple[int, list[LikelyTokens]]]:
        """How likely tokens are in given texts, by `prompt_logprobs` of vLLM's `/completions`.

        Args:
            prompts: token ids, at least two each.
            top_k: of each place the likeliest tokens, and the one that stands there.

        Yields:
            A prompt's place among the prompts, and the tokens for each of its own but the first.

        Raises:
            DataError: as `write`; also where the endpoint does not tell them.
        """

        async def ask(prompt: Sequence[int]) -> list[LikelyTokens]:
            body = {"model": self.model_name, "prompt": list(prompt), "max_tokens": 1, "temperature": 0.0}
            body |= {"prompt_logprobs": top_k} | self.extra
            found, total = await self._call("completions", body, read_token_logprobs)
            self.num_tokens += total
            if found is None:
                raise DataError(
                    f"engine.url: {self.url} tells no log-probabilities of given tokens (prompt_logprobs): take a "
                    "server that does, such as vLLM's"
                )
            if len(found) != len(prompt) - 1:
                raise DataError(
                    f"engine.url: {self.url} tells of {len(found) + 1} tokens where {len(prompt)} were sent: it adds "
                    "some, or leaves some out"
                )
            return found

        return self._each(prompts, ask)

    def call(self, path: str, bodies: Sequence[dict[str, Any]], read: Callable[[Any], R]) -> Iterator[tuple[int, R]]:
        """What the endpoint replies to each of several bodies.

        Args:
            path: behind `url`, such as `completions`.
            bodies: JSON; `model` is part of it.
            read: from the JSON of a reply to what is wanted of it. A `ValueError` of it means a reply that cannot be
                used, which is asked for again.

        Yields:
            A body's place, and what was read; a body that was given up has nothing.

        Raises:
            DataError: as `write`.
        """

        def usable(response: Any) -> R:
            try:
                return read(response)
            except ValueError as error:
                raise CallError(str(error)) from error

        async def ask(body: dict[str, Any]) -> R:
            return await self._call(path, body | self.extra, usable)

        return self._each(bodies, ask)

    def load_adapter(self, name: str, folder: str) -> None:
        """Let a server read an adapter, which it then is asked for by this name as a model (vLLM's protocol).

        Args:
            name: of the adapter; another content, another name. One that the server has already is left there.
            folder: of the adapter, as the server finds it.

        Raises:
            DataError: the server refuses it, or cannot be reached.
        """
        self._tell("load_lora_adapter", {"lora_name": name, "lora_path": folder}, known="already")

    def unload_adapter(self, name: str) -> None:
        """Let a server forget an adapter, where it knows it; raises as `load_adapter`."""
        self._tell("unload_lora_adapter", {"lora_name": name}, known="cannot be found")

    def _tell(self, path: str, body: dict[str, Any], known: str) -> None:
        """A call whose reply says nothing; one that is refused in words with `known` in it had no need to be made."""
        try:
            done: list[Any] = list(self._each([body], lambda one: self._call(path, one, read=None)))
        except DataError as error:
            if known in str(error):
                return
            raise
        if not done:
            raise DataError(f"engine.url: {self.url}/{path} cannot be reached, or did not answer in time")

    def _each(self, asked: Sequence[A], call: Callable[[A], Coroutine[Any, Any, R]]) -> Iterator[tuple[int, R]]:
        """The results as they come, each with its place."""
        client = self._client
        waiting = iter(enumerate(asked))
        running: dict[Future[R], int] = {}
        problem: DataError | None = None
        try:
            while True:
                while problem is None and len(running) < self.concurrency and (one := next(waiting, None)):
                    if (problem := self._budget_spent()) is None:
                        running[client.submit(call(one[1]))] = one[0]
                if not running:
                    break
                # After a problem too: these responses are paid for.
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
            for future in running:  # a consumer that stops ends the waits before retries too
                future.cancel()
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

    async def _reply(self, request: Request) -> Reply:
        body = {
            "model": self.model_name, "messages": list(request.messages), "seed": request.seed,
            "temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_new_tokens,
        }  # fmt: skip
        text, num_tokens, total, is_finished = await self._call("chat/completions", body | self.extra, read_reply)
        self.num_tokens += total
        return Reply(encodable(text), num_tokens, is_finished, max(0, total - num_tokens))

    async def _call(self, path: str, body: dict[str, Any], read: Callable[[Any], R] | None) -> R:
        for retry in range(self.max_retries + 1):
            try:
                return await self._try(path, body, read)
            except Failed as failed:
                if retry == self.max_retries:
                    raise
                longest = min(LONGEST_WAIT, FIRST_WAIT * 2**retry)
                await asyncio.sleep(random.uniform(longest / 2, longest) if failed.wait is None else failed.wait)
        raise AssertionError

    async def _try(self, path: str, body: dict[str, Any], read: Callable[[Any], R] | None) -> Any:
        try:
            reply = await self._client.post(f"{self.url.rstrip('/')}/{path}", body)
            if reply.status in PASSING:
                raise Failed(f"HTTP {reply.status}", seconds_to_wait(reply.headers.get("retry-after")))
            if reply.status != 200:
                raise self._refused(reply)
            return None if read is None else read(parsed(reply.content))
        except CallError as error:
            raise Failed(printable(str(error))) from error

    def _refused(self, reply: HttpReply) -> DataError:
        if 300 <= reply.status < 400:
            elsewhere = printable(redact(reply.headers.get("location", "nowhere")))
            return DataError(
                f"engine.url: {self.url} answers with HTTP {reply.status} and points to {elsewhere}, where no key is "
                "sent: name the address itself, if you trust it"
            )
        # Before it is cut, which could leave a part of a key.
        said = printable(redact(reply.content[:2000].decode(errors="replace")))
        return DataError(f"engine.url: {self.url} refuses the call with HTTP {reply.status}: {said}")

    def perplexities(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Raise `DataError`: chat completions do not say how probable a given text is."""
        raise DataError(
            "engine: an OpenAI-compatible endpoint cannot tell the perplexity of a text: leave that filter out, or "
            "let a LocalEngine write"
        )

    def settings(self) -> dict[str, Any]:
        """All but secrets."""
        names = ("url", "model_name", "concurrency", "timeout", "max_retries", "token_budget", "extra")
        return {"engine": type(self).__name__} | redact({name: getattr(self, name) for name in names})

    def release(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self._client.close()
            del self.__dict__["_client"]


def printable(text: str) -> str:
    """The beginning of a stranger's text on one line, without what would steer a terminal."""
    return re.sub(r"\s+", " ", "".join(one if one.isprintable() else " " for one in text[:2000])).strip()[:300]


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
    return None if math.isnan(seconds) else min(LONGEST_WAIT, max(0.0, seconds))
