"""Makes the records of all generators, by any number of processes that share a folder.

The work is cut into blocks of records. A process takes a block that is not there yet and that nobody works at (a file
lock, which the system takes back from a process that dies), asks the model what the block's log of calls does not know,
and puts the block's candidates in its place. So processes need no communication, the result does not depend on their
number, and whatever is killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.cache import key_of, say_damaged
from datamodules.records.record_source import Writer
from datamodules.synthetic.calls import CachedEngine, CallLog
from datamodules.synthetic.candidate import Candidate, Provenance
from datamodules.synthetic.engine import Engine
from datamodules.synthetic.generators.base import RecordGenerator
from datamodules.synthetic.identity import settings_of
from datamodules.synthetic.making import Made, Making
from datamodules.synthetic.seeds import Seeds
from llm_lightning_safety.files import open_unlinked, write_text
from llm_lightning_safety.seals import checksum, sealed, unsealed

VERSION = 1  # of how candidates are made of replies
B = TypeVar("B")
BODY = "candidates_crc32"
BLOCK_SIZE = 256
"""Records of a block: enough to keep the slots of a local model full, and few enough to be shared out."""


@dataclass(frozen=True)
class Block:
    """Some records of a generator: their numbers, and where their candidates and their calls are kept."""

    name: str
    numbers: range
    path: Path
    calls: Path

    def made_at(self) -> int | None:
        """When it was made, in the file system's time; None where it is not there."""
        return self.path.stat().st_mtime_ns if self.path.exists() else None

    def statistics(self) -> dict[str, Any]:
        """What came of its records, in numbers; see `Generation.statistics`."""
        with open_unlinked(self.path, "r") as file:
            statistics = unsealed(file.readline())
        statistics.pop(BODY, None)
        return statistics

    def is_whole(self) -> bool:
        """Whether it is as it was written."""
        try:
            with open_unlinked(self.path, "rb") as file:
                statistics = unsealed(file.readline())
                return BODY not in statistics or statistics[BODY] == checksum(file.read())
        except ValueError:
            return False

    def candidates(self) -> Iterator[Candidate]:
        """What came of the records."""
        with open_unlinked(self.path, "r") as file:
            file.readline()
            for line in file:
                fields = json.loads(line)
                provenance = fields.pop("provenance")
                provenance["seed_ids"] = tuple(provenance["seed_ids"])
                yield Candidate(provenance=Provenance(**provenance), **fields)


class Generation:
    """All that the generators are to make.

    Args:
        generators: by name.
        seeds: for each name the records to begin with.
        engine: writes the texts.
        writer: what is made of the records; see `Making`.
        folder: keeps the calls and the candidates.
    """

    def __init__(
        self,
        generators: Mapping[str, RecordGenerator],
        seeds: Mapping[str, Seeds],
        engine: Engine,
        writer: Writer,
        folder: Path,
    ) -> None:
        self.generators = generators
        self.seeds = seeds
        self.engine = engine
        self.writer = writer
        self.folder = folder

    @cached_property
    def blocks(self) -> list[Block]:
        """Of all generators, in their order."""
        return [block for name in self.generators for block in self._blocks_of(name)]

    def _blocks_of(self, name: str) -> Iterator[Block]:
        generator, seeds = self.generators[name], self.seeds[name]
        settings = {key: value for key, value in settings_of(generator).items() if key != "count"}
        key = key_of(VERSION, settings, self.engine.model, seeds.key, self.writer.settings())
        folder = f"{name}-{key[:12]}"
        count = generator.num_tasks(seeds)
        for place, first in enumerate(range(0, count, BLOCK_SIZE)):
            numbers = range(first, min(first + BLOCK_SIZE, count))
            path = self.folder / "generated" / folder / f"{place:07d}-{len(numbers)}.jsonl"
            yield Block(name, numbers, path, self.folder / "calls" / name / f"{place:07d}.log")

    def run(self, rank: int = 0, num_ranks: int = 1) -> None:
        """Makes what is missing, or waits for the processes that are at it; each begins at its share of the blocks.

        Raises:
            DataError: the engine cannot go on; what was written until then is kept.
        """
        for name, generator in self.generators.items():
            generator.check_seeds(self.seeds[name])
        there = {block: made for block in self.blocks if (made := block.made_at()) is not None}
        damaged = [block for block in there if not block.is_whole()]
        for block in damaged if rank == 0 else ():
            say_damaged(block.path, "generated records")
        # Also those of an earlier run that had to give up calls are made anew, once.
        stale = {b.path: made for b, made in there.items() if b in damaged or b.statistics()["num_failed"]}
        total = sum(len(block.numbers) for block in self.blocks)
        with tqdm(total=total, desc="Generating", unit="record", disable=rank > 0) as bar:
            attend_to_all(self.blocks, lambda block: self._attend(block, stale, bar), rank, num_ranks)

    def _attend(self, block: Block, stale: Mapping[Path, int | None], bar: tqdm) -> bool:
        """Makes the block if nobody else does; whether it is there."""

        def is_there() -> bool:
            return (made := block.made_at()) is not None and made != stale.get(block.path)

        if not is_there():
            for path in (block.path, block.calls):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(block.path.with_name(f".{block.path.name}.lock"), timeout=0):
                    if not is_there():
                        self._make(block, lambda tokens: _count_tokens(bar, tokens))
            except Timeout:
                return False
        bar.update(len(block.numbers))
        return True

    def _make(self, block: Block, on_reply: Callable[[int], object]) -> None:
        # Blocks of other sizes have the same calls, but never two processes at once.
        with FileLock(f"{block.calls}.lock"), CallLog(block.calls) as log:
            engine = CachedEngine(self.engine, log)
            generator, seeds = self.generators[block.name], self.seeds[block.name]
            made = Making(block.name, generator, block.numbers, seeds, engine, self.writer, on_reply).run()
        _write(block, made)

    def candidates(self) -> Iterator[Candidate]:
        """All that was made, streaming, in an order that depends on nothing but the configuration."""
        return (candidate for block in self.blocks for candidate in block.candidates())

    def statistics(self) -> dict[str, dict[str, Any]]:
        """For each generator: `num_tasks`, `num_candidates`, `num_failed`, `num_tokens`, and `dropped` by reason."""
        numbers = {name: Counter[str]() for name in self.generators}
        dropped = {name: Counter[str]() for name in self.generators}
        for block in self.blocks:
            statistics = block.statistics()
            dropped[block.name].update(statistics.pop("dropped"))
            numbers[block.name].update(statistics)
        return {name: {**numbers[name], "dropped": dict(dropped[name].most_common())} for name in self.generators}

    def key(self) -> str:
        """Names what was made."""
        return key_of(
            [[block.path.parent.name, block.path.name, block.statistics()["num_failed"]] for block in self.blocks]
        )


def attend_to_all(blocks: Sequence[B], attend: Callable[[B], bool], rank: int, num_ranks: int) -> None:
    """Attend to each block until all are there, beginning at this process's share of them.

    Args:
        blocks: all.
        attend: makes a block if nobody else does; whether it is there.
        rank, num_ranks: this process among those that share the blocks.
    """
    start = rank * len(blocks) // num_ranks
    waiting = [*blocks[start:], *blocks[:start]]
    while waiting:
        open_before = len(waiting)
        waiting = [block for block in waiting if not attend(block)]
        if len(waiting) == open_before:  # others are at the rest
            time.sleep(1)


def process_number() -> tuple[int, int]:
    """This process's number among those that were started together, as SLURM or torchrun say."""
    rank, count = (
        next((int(os.environ[name]) for name in names if name in os.environ), default)
        for names, default in ((("RANK", "SLURM_PROCID"), 0), (("WORLD_SIZE", "SLURM_NTASKS"), 1))
    )
    return min(rank, count - 1), count


def _write(block: Block, made: Made) -> None:
    statistics: dict[str, Any] = {
        "num_tasks": len(block.numbers),
        "num_candidates": len(made.candidates),
        "num_failed": made.num_failed,
    }
    statistics |= {"num_tokens": made.num_tokens, "dropped": made.dropped}
    body = "".join(f"{json.dumps(asdict(candidate))}\n" for candidate in made.candidates)
    write_text(block.path, f"{sealed(statistics | {BODY: checksum(body.encode())})}\n{body}")


def _count_tokens(bar: tqdm, tokens: int) -> None:
    bar.tokens = getattr(bar, "tokens", 0) + tokens
    bar.set_postfix(tokens=f"{bar.tokens:,}", refresh=False)
    bar.update(0)
