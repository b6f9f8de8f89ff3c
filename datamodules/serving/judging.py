"""What to judge networks by: of preference pairs each as it is, none cut or packed, and which part of a source."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.pairs import PairEncoder, WrittenPair
from datamodules.records.preferences import IDENTICAL
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.discover import S
from datamodules.sources.splits import TEST, VALIDATION
from datamodules.sources.units import Unit

TIES = "that are ties"


class JudgedPair(NamedTuple):
    """Two conversations that begin alike and end with different responses, of which people preferred one.

    Args:
        chosen, rejected: token ids of the whole conversations.
        prompt: names what both answer.
        hash: names the pair, whatever tokenizer reads it.
        written: the chosen conversation as the template writes it.
        texts: what is said in both.
    """

    chosen: list[int]
    rejected: list[int]
    prompt: str
    hash: str
    written: str
    texts: list[str]


def held_out(source: S, splits: Sequence[str] = (TEST, VALIDATION)) -> S:
    """The source's part for one of these, the first that names of files tell of; without such names what it names."""
    if source.found is None:  # of the hub
        return source.of_split(splits[0])
    return source.of_split(next((split for split in splits if split in source.found.splits), source.split))


def judged_pairs(units: Sequence[Unit], encoder: PairEncoder, left_out: Counter[str]) -> Iterator[JudgedPair]:
    """The pairs that can be judged, in their order.

    Args:
        units: of pairs.
        encoder: what writes them down.
        left_out: takes note of how many pairs were left out, by the reason.

    Raises:
        DataError: a record cannot be read.
    """
    for unit in units:
        bad = BadRecords(unit)
        pairs = (one for one in encoder.written(unit, bad) if isinstance(one, WrittenPair))
        for batch in bounded_batches(pairs, lambda one: len(one.chosen.text + one.rejected.text)):
            texts = [text for one in batch for text in (one.chosen.text, one.rejected.text)]
            ids = [each.ids for each in encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            for one, chosen, rejected in zip(batch, ids[::2], ids[1::2], strict=True):
                if one.preference.is_tie:
                    left_out[TIES] += 1
                elif chosen == rejected:
                    left_out[IDENTICAL.reason] += 1
                else:
                    yield _judged(one, chosen, rejected)
        left_out.update(bad.left_out)


def _judged(one: WrittenPair, chosen: list[int], rejected: list[int]) -> JudgedPair:
    preference = one.preference
    said = [*preference.chosen, preference.rejected[-1]]
    prompt = [preference.prompt, preference.tools]
    texts = [content for message in said if isinstance(content := message.get("content"), str)]
    return JudgedPair(chosen, rejected, _name(prompt), _name([prompt, said[-2:]]), one.chosen.text, texts)


def _name(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()[:32]
