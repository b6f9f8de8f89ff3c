"""Which documents stay, once all were read: what compares them runs here, over what was noted of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.cache import key_of, made_folder
from datamodules.filters.chain import Chain, sign_of
from datamodules.filters.funnel import NUM_EXAMPLES, Stage, shown
from datamodules.storage.file_array import SummedFile
from datamodules.storage.shards import Kept, Shard

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
KEPT, REPORT = "kept", "filters.json"
DOCUMENTS_AT_ONCE = 1 << 14
TOKENS_SHOWN = 128


def keep(shards: Sequence[Shard], chain: Chain, tokenizer: Tokenizer, root: Path) -> tuple[list[Shard], Path]:
    """The shards with the choice of what all filters keep, from the cache where it is there.

    Args:
        shards: of all documents in which no filter that looks at one found a fault, with the chain's `notes`.
        chain: the filters.
        tokenizer: for examples.
        root: of the cache.

    Returns:
        The shards, and the report: what each filter took, with examples.
    """
    folder = root / "filtered" / key_of(VERSION, [shard.name for shard in shards], chain.specs())
    made_folder(folder, "what the filters keep", lambda new: _make(shards, chain, tokenizer, new))
    if not chain.comparing:
        return list(shards), folder / REPORT
    starts = _starts(shards)
    kept = [replace(shard, kept=Kept(str(folder / KEPT), start)) for shard, start in zip(shards, starts, strict=False)]
    return kept, folder / REPORT


def read_report(path: Path) -> dict[str, Any]:
    """The funnel."""
    return json.loads(path.read_text(encoding="utf-8"))


def _make(shards: Sequence[Shard], chain: Chain, tokenizer: Tokenizer, folder: Path) -> None:
    funnel = chain.funnel()
    funnel.add(shard.statistics["filtered"] for shard in shards)
    notes = _Notes(shards, chain.dtype)
    for number, each in enumerate(chain.comparing):
        earlier = each.earlier(partial(notes.of, sign_of(number)), folder)
        _count(funnel.stages[len(chain.single) + number], notes, earlier, each.reason, tokenizer)
        notes.stays[np.flatnonzero(notes.stays)[earlier >= 0]] = False
    with SummedFile(folder / KEPT) as file:
        file.write(notes.stays.tobytes())
    report = funnel.as_json()
    for stage, spec in zip(report["stages"], chain.specs(), strict=True):
        stage |= {"class_path": spec["class_path"], "settings": spec["init_args"]}
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


class _Notes:
    """What was noted of the documents of all shards, of those that are still there."""

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype) -> None:
        self.shards = shards
        self.dtype = dtype
        self.starts = _starts(shards)
        self.stays = np.ones(self.starts[-1], bool)

    def of(self, field: str) -> Iterator[np.ndarray]:
        """A field, in pieces."""
        for shard, start in zip(self.shards, self.starts, strict=False):
            details = shard.details(self.dtype)
            for first in range(0, shard.statistics["num_documents"], DOCUMENTS_AT_ONCE):
                part = details[first : first + DOCUMENTS_AT_ONCE]
                yield part[field][self.stays[start + first :][: len(part)]]

    def text(self, place: int, tokenizer: Tokenizer) -> str:
        """The beginning of a document, by its place among all."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        shard = self.shards[number]
        within = place - self.starts[number]
        ends = shard.documents()["end"]
        begin = int(ends[within - 1]) if within else 0
        return tokenizer.decode(shard.tokens[begin : min(begin + TOKENS_SHOWN, int(ends[within]))].tolist())


def _starts(shards: Sequence[Shard]) -> list[int]:
    return [0, *accumulate(shard.statistics["num_documents"] for shard in shards)]


def _count(stage: Stage, notes: _Notes, earlier: np.ndarray, reason: str, tokenizer: Tokenizer) -> None:
    """Notes what a comparing filter took; examples are spread evenly over all of them."""
    taken = np.flatnonzero(earlier >= 0)
    if not len(taken):
        return
    characters = np.concatenate(list(notes.of("characters")))[taken]
    stage.documents, stage.characters = len(taken), int(characters.sum())
    stage.reasons[reason] = len(taken)
    places = np.flatnonzero(notes.stays)
    for number in np.unique(np.linspace(0, len(taken) - 1, NUM_EXAMPLES).astype(int)):
        place, other = places[taken[number]], places[earlier[taken[number]]]
        text, of = (shown(notes.text(int(each), tokenizer)) for each in (place, other))
        stage.examples.append({"reason": reason, "characters": int(characters[number]), "text": text, "earlier": of})
