"""Several samples to each of many prompts, each paid for once.

The prompts are cut into blocks. A process takes a block that is not there yet and that nobody works at, asks the engine
what the block's log of calls does not know, and puts the block's rows in its place. So processes need no communication,
the result does not depend on their number, and whatever is killed goes on where it was. Other rewards and choices, and
more samples, ask nothing again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.cache import key_of
from datamodules.encoding.prompts import merged
from datamodules.synthetic.calls import CachedEngine, CallLog
from datamodules.synthetic.engine import Engine, Request, WrittenText
from datamodules.synthetic.generation import attend_to_all
from datamodules.synthetic.identity import settings_of
from datamodules.synthetic.seeds import Seed, Seeds
from llm_lightning.errors import UserError
from llm_lightning.inference.costs import Cost, cost_of, metered
from llm_lightning.inference.examples import ChosenExamples
from llm_lightning.inference.judging import Judging, as_rewards_see_it
from llm_lightning.rewards import RecordCheck, score
from llm_lightning_safety.files import atomic_file, open_unlinked, write_text
from llm_lightning_safety.json_values import json_default

VERSION = 1  # of the rows
BLOCK_SIZE = 64
"""Prompts of a block: with a few samples each enough to keep a local model's slots full, few enough to share out."""


@dataclass(frozen=True)
class Asking:
    """How each prompt is asked.

    Args:
        num_samples: answers to each.
        temperature: divides the logits; 0 takes the likeliest token, which needs no second sample.
        top_p: share of the probability that tokens are drawn from.
        max_new_tokens: length of an answer, at most.
        seed: of the answers' random numbers, which depend on the prompt too, but not on what else is asked.
        system_prompt: stands before each prompt that has none of its own.
    """

    num_samples: int = 1
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 1
    system_prompt: str | None = None

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        for name, valid, words in (
            ("num_samples", self.num_samples >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not valid:
                raise UserError(f"--{name} {getattr(self, name)} must be {words}.")
        if self.temperature == 0 and self.num_samples > 1:
            raise UserError(
                f"--temperature 0 writes the same answer --num_samples {self.num_samples} times: raise it, or take one "
                "sample."
            )

    def requests(self, seed: Seed, examples: ChosenExamples | None = None) -> list[Request]:
        """What is asked for one prompt.

        Args:
            seed: the prompt.
            examples: that stand before its first question.
        """
        messages = seed.prompt
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        if examples is not None:
            num_before = int(messages[0]["role"] == "system")
            messages = [*messages[:num_before], *examples.turns(seed), *messages[num_before:]]
        return [
            Request(
                tuple(messages),
                int(key_of(self.seed, messages, number)[:15], 16),
                self.temperature,
                self.top_p,
                self.max_new_tokens,
            )
            for number in range(self.num_samples)
        ]


def _row(judging: Judging, seed: Seed, written: Sequence[WrittenText], given: Mapping[str, Sequence[float]]) -> Any:
    """A line of the result; its `messages` are a conversation that can be learned from."""
    texts = [one.text for one in written]
    chosen = judging.choose(texts, given) if texts else None
    samples = [
        {"text": one.text, "num_tokens": one.num_tokens, "is_finished": one.is_finished}
        | {"rewards": {name: values[place] for name, values in given.items()}}
        for place, one in enumerate(written)
    ]
    answer = [] if chosen is None else [{"role": "assistant", "content": texts[chosen]}]
    return {
        "id": seed.id,
        "messages": [*seed.prompt, *answer],
        "chosen": chosen,
        "samples": samples,
        "record": seed.columns,
    }


@dataclass(frozen=True)
class Block:
    """Some prompts: their numbers, where their rows are kept, and their calls."""

    numbers: range
    path: Path
    calls: Path

    @property
    def costs(self) -> Path:
        """What its calls cost."""
        return self.calls.with_suffix(".costs.jsonl")

    @property
    def unfinished(self) -> Path:
        """The rows where calls were given up, which the next command makes again."""
        return self.path.with_suffix(".unfinished")

    def made(self) -> Path | None:
        """Where the rows are; None: nowhere."""
        return next((path for path in (self.path, self.unfinished) if path.exists()), None)


class Pool:
    """All samples.

    Args:
        prompts: what is asked.
        engine: what answers.
        asking: how.
        judging: what is thought of it.
        folder: keeps calls and rows.
        examples: that stand before each prompt.
    """

    def __init__(
        self,
        prompts: Seeds,
        engine: Engine,
        asking: Asking,
        judging: Judging,
        folder: Path,
        examples: ChosenExamples | None = None,
    ) -> None:
        self.prompts, self.engine, self.asking, self.judging, self.folder = prompts, engine, asking, judging, folder
        self.examples = examples
        self._answers_are_read, self._is_alone = False, True

    @cached_property
    def blocks(self) -> list[Block]:
        """In the order of the prompts."""
        settings = settings_of([vars(self.asking), self.judging.rewards, self.judging.choices])
        examples = [] if self.examples is None else [self.examples.key]
        key = key_of(VERSION, self.prompts.key, self.engine.model, settings, *examples)[:16]
        return [
            Block(
                range(first, min(first + BLOCK_SIZE, len(self.prompts))),
                self.folder / "rows" / key / f"{first:09d}.jsonl",
                self.folder / "calls" / f"{first:09d}.log",
            )
            for first in range(0, len(self.prompts), BLOCK_SIZE)
        ]

    def check(self) -> None:
        """Raise `UserError` for a prompt whose answers the rewards could not judge."""
        check = RecordCheck(self.judging.rewards)
        if not check.key:
            return
        for number, seed in enumerate(self.prompts):
            if reason := check(seed.columns):
                raise UserError(f"--prompts: record {number + 1}: {reason}")

    def run(self, rank: int = 0, num_ranks: int = 1) -> None:
        """Make what is missing, or wait for the processes that are at it; each begins at its share of the blocks."""
        self._is_alone = num_ranks == 1
        stale = {
            block.unfinished: block.unfinished.stat().st_mtime_ns
            for block in self.blocks
            if block.made() == block.unfinished
        }
        total = len(self.prompts) * self.asking.num_samples
        with tqdm(total=total, desc="Writing answers", unit="answer", disable=rank > 0) as bar:
            attend_to_all(self.blocks, lambda block: self._attend(block, stale, bar), rank, num_ranks)

    def _attend(self, block: Block, stale: Mapping[Path, int], bar: tqdm) -> bool:
        """Make the block if nobody else does; whether it is there."""

        def is_there() -> bool:
            made = block.made()
            return made is not None and made.stat().st_mtime_ns != stale.get(made)

        if is_there():
            bar.update(len(block.numbers) * self.asking.num_samples)
            return True
        for path in (block.path, block.calls):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{block.calls}.lock", timeout=0):
                if not is_there():
                    self._make(block, bar)
        except Timeout:
            return False
        return True

    def _make(self, block: Block, bar: tqdm) -> None:
        seeds = [self.prompts[number] for number in block.numbers]
        requests = [request for seed in seeds for request in self.asking.requests(seed, self.examples)]
        written: dict[int, WrittenText] = {}
        with CallLog(block.calls) as log, metered(self.engine, block.costs, self._is_alone) as meter:
            num_known = len(log)
            for place, text in CachedEngine(self.engine, log).write(requests):
                written[place] = text
                if len(log) > num_known:
                    num_known, meter.tokens = len(log), meter.tokens + text.num_tokens
                bar.update(1)
        if not self._answers_are_read:
            self.judging.check_readers([text.text for text in written.values()])
            self._answers_are_read = True
        rows = list(self._rows(seeds, written))
        body = "".join(json.dumps(row, default=json_default) + "\n" for row in rows)
        is_whole = len(written) == len(requests)
        write_text(block.path if is_whole else block.unfinished, body)
        if is_whole:
            block.unfinished.unlink(missing_ok=True)

    def _rows(self, seeds: Sequence[Seed], written: Mapping[int, WrittenText]) -> Iterator[dict[str, Any]]:
        count = self.asking.num_samples
        owners = [place // count for place in sorted(written)]
        texts = [written[place].text for place in sorted(written)]
        prompts = [as_rewards_see_it(seeds[owner].prompt) for owner in owners]
        columns = merged([seeds[owner].columns for owner in owners])
        given = score(self.judging.rewards, prompts, texts, columns)
        for number, seed in enumerate(seeds):
            own = [place for place, owner in enumerate(owners) if owner == number]
            samples = [written[place] for place in sorted(written) if place // count == number]
            yield _row(self.judging, seed, samples, {name: [values[i] for i in own] for name, values in given.items()})

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order of the prompts."""
        for block in self.blocks:
            path = block.made()
            assert path is not None
            with open_unlinked(path, "r") as file:
                yield from map(json.loads, file)

    def cost(self) -> Cost | None:
        """Of a token, over all that the engine was asked for in this folder."""
        return cost_of([block.costs for block in self.blocks], self.engine.model)

    def num_given_up(self) -> int:
        """Blocks in which calls were given up."""
        return sum(block.made() == block.unfinished for block in self.blocks)

    def write(self, path: Path) -> None:
        """All rows as one file, by one rename."""
        with atomic_file(path) as temporary, temporary.open("w") as file:
            for row in self.rows():
                file.write(json.dumps(row, default=json_default) + "\n")
