"""Replies of OpenAI-compatible endpoints: what is in them, and whether it can be."""

import math
from textwrap import shorten
from typing import Any, NamedTuple, TypeAlias

from datamodules.synthetic.bounded_http import CallError

MOST_TOKENS = 2**31
"""What an endpoint may count in one reply and be believed."""

MOST_LOGPROB = 1e-2
"""What rounding may make of a log-probability of 0."""


class LikelyToken(NamedTuple):
    """How likely an endpoint finds a token, and what it calls it."""

    logprob: float
    text: str


LikelyTokens: TypeAlias = dict[int, LikelyToken]


def read_reply(response: Any) -> tuple[str, int, int, bool]:
    """Text, number of its tokens, tokens of prompt and text together, and whether the model ended it.

    Raises:
        CallError: it is no chat completion with a text.
    """
    try:
        choice = response["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        usage = response.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("completion_tokens", "total_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CallError(f"a reply that is no chat completion ({type(error).__name__}: {error})") from error
    if not isinstance(text, str):
        raise CallError("a reply without text")
    for count in counts:
        if not isinstance(count, int | float) or not 0 <= count < MOST_TOKENS:
            raise CallError(f"a reply that counts {shorten(str(count), 40)} tokens")
    return text, int(counts[0]), int(counts[1]), finish == "stop"


def read_token_logprobs(response: Any) -> tuple[list[LikelyTokens] | None, int]:
    """The likely tokens in the place of each but the first, None where there are none, and tokens that were counted.

    Raises:
        CallError: it is no completion, or tells what cannot be.
    """
    try:
        told, usage = response["choices"][0].get("prompt_logprobs"), response.get("usage") or {}
        count = usage.get("total_tokens") or 0
        if not told:
            return None, int(count)
        found = [
            {
                int(number): LikelyToken(float(one["logprob"]), str(one.get("decoded_token")))
                for number, one in place.items()
            }
            for place in told[1:]
        ]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CallError(f"a reply that is no completion ({type(error).__name__}: {error})") from error
    if not isinstance(count, int | float) or not 0 <= count < MOST_TOKENS:
        raise CallError(f"a reply that counts {shorten(str(count), 40)} tokens")
    if any(not -math.inf < one.logprob < MOST_LOGPROB for place in found for one in place.values()):
        raise CallError("a reply with a log-probability above 0")
    return found, int(count)
