"""Which items of an evaluation stand in training data, by their runs of 13 words; the data stream by.

As Brown et al. ("Language Models are Few-Shot Learners", 2020, appendix C) an item counts as contaminated where the
training data hold one of its runs. All texts of all columns are looked at, whatever shape the records have.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.cache import key_of
from datamodules.records.words import UNKNOWN, Coder, runs
from datamodules.sources.discover import Source, resolve
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit
from llm_lightning_safety.seals import read_json, write_json

VERSION = 1  # of what is kept in the cache
RUN = 13  # words
PROBE = 7
STEP = RUN - PROBE + 1
"""Whoever has a run of 13 words has one of its runs of 7 at a multiple of 7: to look there alone is enough."""


class TrainingTexts:
    """All texts of training data.

    What was found in a part of them is kept in the cache, so that nothing is read twice.

    Args:
        sources: what is trained on.
        root: the cache's folder.
        look_again: False: take hub data sets as they were found last.

    Raises:
        DataError: nothing is there.
    """

    def __init__(self, sources: Iterable[Source], root: Path, look_again: bool = True) -> None:
        self.units = [unit for source in sources for unit in resolve(source, root, look_again)]
        self.root = root

    def contaminated(self, items: Sequence[Sequence[str]], rank: int = 0, num_ranks: int = 1) -> list[bool | None]:
        """For each item whether it stands in this rank's share of the texts; None where that cannot be told, as it has
        no 13 words in a row.

        Args:
            items: of each item, its texts.
            rank, num_ranks: this process's place among those that share the work.
        """
        known = ItemRuns(items)
        units = self.units[rank::num_ranks]
        found: set[int] = set()
        with tqdm(
            total=sum(unit.size for unit in units), desc="Looking for items in training data", unit="B",
            unit_scale=True, disable=rank > 0 or not units,
        ) as progress:  # fmt: skip
            for unit in units:
                found |= self._found_in(unit, known)
                progress.update(unit.size)
        return [number in found if number in known.numbers else None for number in range(len(items))]

    def _found_in(self, unit: Unit, known: "ItemRuns") -> set[int]:
        key = key_of(VERSION, known.key, unit.digest, unit.start, unit.stop, unit.format)
        memo = self.root / "contamination" / f"{key}.json"
        with suppress(FileNotFoundError, ValueError):
            return set(read_json(memo)["found"])
        found = known.found_in(texts_of_unit(unit))
        write_json(memo, {"found": sorted(found)})
        return found


def texts_of_unit(unit: Unit) -> Iterator[str]:
    """Every text in every column of a unit's records; what cannot be read is passed over."""
    for _, record in records(unit):
        if not isinstance(record, Bad):
            yield from texts_in(record)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a record, however deep it lies; not the names of columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one)


class ItemRuns:
    """The runs of words of all items.

    Args:
        items: of each item, its texts.

    Attributes:
        key: names the items.
        numbers: of the items that have a run at all.
    """

    def __init__(self, items: Iterable[Sequence[str]]) -> None:
        self._coder = Coder()
        self._owners: dict[str, list[int]] = {}
        self._probes: set[str] = set()
        self.numbers: set[int] = set()
        digest = hashlib.blake2b(digest_size=16)
        for number, texts in enumerate(items):
            for text in texts:
                digest.update(f"{number} {len(text)} {text}".encode("utf-8", "surrogatepass"))
                for run in runs(self._coder.learn(text), RUN):
                    self.numbers.add(number)
                    self._owners.setdefault(run, []).append(number)
                    self._probes.update(runs(run, PROBE))
        self.key = digest.hexdigest()

    def found_in(self, texts: Iterable[str]) -> set[int]:
        """The numbers of the items of which a text has a run."""
        found: set[int] = set()
        for text in texts:
            for part in self._coder.code(text).split(UNKNOWN):
                if len(part) >= RUN and not self._probes.isdisjoint(runs(part, PROBE, STEP)):
                    for run in runs(part, RUN) & self._owners.keys():
                        found.update(self._owners[run])
        return found
