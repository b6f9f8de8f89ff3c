"""What becomes of pairs and of single answers that are longer than a row."""

from typing import Literal, TypeAlias

import numpy as np

from datamodules.sources.bad_records import LeftOut

Cut = Literal["drop", "left", "right"]
Parts: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens that two responses begin with, and each one's own."""

EQUAL = LeftOut("that are the same once they are cut to the length of a row")
TOO_LONG = LeftOut("of two answers that are longer than a row without their prompt")
TOO_LONG_ALONE = LeftOut("with an answer that is longer than a row without its prompt")


def cut_pair(parts: Parts, num_common: int, longest: int, too_long: Cut) -> Parts | LeftOut:
    """A pair cut to the length of a row; or why nothing of it is left.

    Args:
        parts: as structured arrays with the token ids in `id`.
        num_common: with how many equal tokens both responses begin.
        longest: tokens of a row.
        too_long: `drop` leaves it whole, for the packing to leave out; `left` cuts off the beginning of the prompt,
            `right` the ends of the responses.
    """
    shared, chosen, rejected = parts
    excess = len(shared) + len(chosen) + len(rejected) - longest
    if too_long == "drop" or excess <= 0:
        return parts
    if too_long == "left":
        if len(shared):
            cut = (shared[excess:], chosen, rejected)
        else:
            each = -(-excess // 2)
            cut = (shared, chosen[each:], rejected[each:])
            excess = each
        return cut if excess <= num_common else TOO_LONG
    room = longest - len(shared)
    # The longer response is cut first, down to the other's length.
    fair = max(room // 2, room - min(len(chosen), len(rejected)))
    chosen, rejected = chosen[: max(0, fair)], rejected[: max(0, fair)]
    return EQUAL if np.array_equal(chosen["id"], rejected["id"]) else (shared, chosen, rejected)


def cut_single(tokens: np.ndarray, num_prompt: int, longest: int, too_long: Cut) -> np.ndarray | LeftOut:
    """A single answer behind its prompt, of `num_prompt` tokens, cut in the same way."""
    excess = len(tokens) - longest
    if too_long == "drop" or excess <= 0:
        return tokens
    if too_long == "right":
        return tokens[:longest]
    return tokens[excess:] if excess <= num_prompt else TOO_LONG_ALONE
