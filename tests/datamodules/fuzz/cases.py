"""One case: a file of good records with bad ones among them, read by a DataModule, and what has to hold of it."""

import gzip
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule, TextDataModule
from datamodules.storage.statistics import left_out
from tests.datamodules.fuzz.good_records import INSTRUCTION, PREFERENCE, PROMPT, TEXT, Shape
from tests.datamodules.fuzz.mutations import DAMAGED, as_json, broken_row, columnar, csv_row, damaged, mutated

SEQ_LEN = 256
NUM_GOOD = 6


class BrokenError(AssertionError):
    """A promise of the DataModules does not hold."""


@dataclass(frozen=True)
class Kind:
    """A DataModule, and how to look at what it makes.

    Args:
        build: from settings to the DataModule.
        shapes: the records it reads.
        seen: from the prepared DataModule to the text of an epoch, and the text that is trained of it.
        counted: how many records it accounts for, whatever became of each.
    """

    build: Callable[..., Any]
    shapes: dict[str, Shape]
    seen: Callable[[Any], tuple[str, str]]
    counted: Callable[[Any], int]


def _epoch(data: Any) -> Iterator[dict[str, Any]]:
    for _, batch in zip(range(int(data.statistics["train"]["num_rows"])), data.train_dataloader(), strict=False):
        yield batch


def _rows(data: Any) -> tuple[str, str]:
    """Packed rows; what is trained has to be as much as was said."""
    seen, trained, num_trained = [], [], 0
    for batch in _epoch(data):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            seen.append(data.tokenizer.decode(ids))
            trained.append(data.tokenizer.decode(ids[labels != -100]))
            num_trained += int((labels != -100).sum())
    said = data.statistics["train"]["num_trained"]
    if num_trained != said:
        raise BrokenError(f"{num_trained} tokens are trained, {said} are said")
    return "\n".join(seen), "\n".join(trained)


def _pairs(data: Any) -> tuple[str, str]:
    """Rows of pairs; each is judged once."""
    seen, trained, num_pairs = [], [], 0
    for batch in _epoch(data):
        flat = batch["input_ids"].flatten()
        num_pairs += len(batch["chosen_ends"])
        seen.append(data.tokenizer.decode(flat))
        for end, length in zip(batch["chosen_ends"].tolist(), batch["chosen_lengths"].tolist(), strict=True):
            trained.append(data.tokenizer.decode(flat[end + 1 - length : end + 1]))
    statistics = data.statistics["train"]
    if num_pairs != statistics["num_documents"] - statistics["num_dropped"]:
        raise BrokenError(f"{num_pairs} pairs are trained, {statistics['num_documents']} are said")
    return "\n".join(seen), "\n".join(trained)


def _prompts(data: Any) -> tuple[str, str]:
    asked = [data.tokenizer.decode(data._train[number].ids) for number in range(len(data._train))]
    columns = [json.dumps(data._train[number].columns, default=str) for number in range(len(data._train))]
    return "\n".join(asked), "\n".join([*columns, *asked])


def _shards(data: Any) -> int:
    shards = [shard for _, shards in data._train for shard in shards]
    bad = sum(shard.statistics["num_bad"] for shard in {shard.path: shard for shard in shards}.values())
    return int(data.statistics["train"]["num_documents"]) + bad + sum(left_out(shards).values())


def _prompt_files(data: Any) -> int:
    statistics = [json.loads(file.with_name("facts.json").read_text()) for file in dict.fromkeys(data._train.files)]
    return len(data._train) + sum(data._train.num_too_long) + sum(each["num_bad"] for each in statistics)


KINDS = {
    "text": Kind(TextDataModule, TEXT, _rows, _shards),
    "instruction": Kind(InstructionDataModule, INSTRUCTION, _rows, _shards),
    "preference": Kind(PreferenceDataModule, PREFERENCE, _pairs, _shards),
    "prompt": Kind(PromptDataModule, PROMPT, _prompts, _prompt_files),
}


@dataclass
class Case:
    """What is written for one seed.

    Args:
        kind: one of `KINDS`.
        shape: of the records.
        lines: of the file.
        bad: which lines were changed, counted from 1.
        form: how the file is written.
        on_bad_record: `stop` or `skip`.
    """

    kind: str
    shape: str
    lines: list[bytes]
    bad: set[int]
    form: str
    on_bad_record: str

    @classmethod
    def of(cls, seed: int) -> "Case":
        """The case of a seed, always the same."""
        rng = random.Random(seed)
        kind = rng.choice(list(KINDS))
        shape, make = rng.choice(list(KINDS[kind].shapes.items()))
        values = make("", "").values()
        # A quote that is left open may take the next row with it where fields hold line breaks.
        if rng.random() < 0.2 and all(isinstance(value, str | int) and "\n" not in str(value) for value in values):
            return cls._table(rng, kind, shape, make)
        if rng.random() < 0.1:
            return cls._columnar(rng, kind, shape, make)
        lines = [as_json(make(*marked(number)), rng) for number in range(NUM_GOOD)]
        bad: set[int] = set()
        for number in range(rng.choice([1, 1, 2, 3])):
            line = as_json(mutated(make(f"Odd question {number}?", f"Odd answer {number}."), rng), rng)
            line = damaged(line, rng) if rng.random() < 0.15 else line
            at = rng.randrange(len(lines) + 1)
            lines.insert(at, line)
            bad = {place + (place > at) for place in bad} | {at + 1}
        form = rng.choice(["jsonl"] * 5 + ["jsonl.gz", "jsonl.zst", "json", "crlf", "bom", "no newline at the end"])
        return cls(kind, shape, lines, bad, form, rng.choice(["stop", "skip", "skip"]))

    @classmethod
    def _table(cls, rng: random.Random, kind: str, shape: str, make: Shape) -> "Case":
        """A table with one broken row."""
        records = [make(*marked(number)) for number in range(NUM_GOOD)]
        rows = [csv_row(list(record.values()), rng) for record in records]
        at = rng.randrange(len(rows) + 1)
        rows.insert(at, broken_row(list(make("Odd question?", "Odd answer.").values()), rng))
        lines = [csv_row(list(records[0]), rng), *rows]
        begin = 1 + sum(line.count(b"\n") + 1 for line in lines[: at + 1])
        end = begin + rows[at].count(b"\n")
        return cls(kind, shape, lines, set(range(begin, end + 1)), "csv", rng.choice(["stop", "skip"]))

    @classmethod
    def _columnar(cls, rng: random.Random, kind: str, shape: str, make: Shape) -> "Case":
        """Columns, with bytes that are no UTF-8 in one row."""
        records = [make(*marked(number)) for number in range(NUM_GOOD)]
        at = rng.randrange(len(records) + 1)
        records.insert(at, make(f"Odd {DAMAGED}?", f"Odd {DAMAGED}."))
        lines = [json.dumps(record).encode() for record in records]
        return cls(kind, shape, lines, {at + 1}, rng.choice(["parquet", "arrow"]), rng.choice(["stop", "skip"]))

    def __str__(self) -> str:
        return f"{self.kind}, {self.shape}, {self.form}, {self.on_bad_record}"

    def write(self, folder: Path) -> Path:
        """The file that holds the case."""
        content = b"\n".join(self.lines) + b"\n"
        match self.form:
            case "jsonl.gz":
                content = gzip.compress(content)
            case "jsonl.zst":
                content = zstandard.ZstdCompressor().compress(content)
            case "json":
                content = b"[" + b",\n".join(self.lines) + b"]"
            case "crlf":
                content = content.replace(b"\n", b"\r\n")
            case "bom":
                content = b"\xef\xbb\xbf" + content
            case "parquet" | "arrow":
                content = columnar([json.loads(line) for line in self.lines], self.form)
            case "no newline at the end":
                content = content[:-1]
        has_suffix = self.form.startswith(("json", "csv", "parquet", "arrow"))
        path = folder / f"data.{self.form if has_suffix else 'jsonl'}"
        path.write_bytes(content)
        return path


def marked(number: int) -> tuple[str, str]:
    """A question and an answer that are found again."""
    return f"Question qz{number}zq?", f"Answer az{number}za."


def check(case: Case, tokenizer: str, folder: Path) -> str:
    """Read the case; returns in a word what came of it.

    Raises:
        BrokenError: a good record is missing, records or tokens are not accounted for, or a message does not help.
        Exception: anything but a `DataError`.
    """
    kind, path = KINDS[case.kind], case.write(folder)
    settings = {"path": str(path), "cache_dir": str(folder / "cache"), "val_share": 0.0, "batch_size": 1}
    settings |= {"tokenizer": tokenizer, "on_bad_record": case.on_bad_record}
    settings |= {"seq_len": SEQ_LEN} if case.kind != "prompt" else {}
    settings |= {"template": "chatml"} if case.kind != "text" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = kind.build(**settings)
            data.prepare_data()
            data.setup("fit")
            seen, trained = kind.seen(data)
        except DataError as error:
            _check_message(str(error), case, path)
            return "refused"
    _check_good_records(seen, trained, case.kind)
    if case.form not in ("json", "csv") and kind.counted(data) != (
        wanted := sum(bool(line.strip()) for line in case.lines)
    ):
        raise BrokenError(f"{kind.counted(data)} records are accounted for, {wanted} are in the file")
    return "read"


def _check_message(message: str, case: Case, path: Path) -> None:
    if not message.strip() or len(message) > 1500 or 'File "' in message:
        raise BrokenError(f"a message that does not help: {message[:2000]!r}")
    if not (path.name in message or re.match(r"[a-z_]+( and [a-z_]+)?:", message)):
        raise BrokenError(f"neither file nor field is named: {message!r}")
    if "on_bad_record=skip" in message and case.form != "json":
        place = re.search(re.escape(path.name) + r"(?::|, row )(\d+)", message)
        if not place or int(place[1]) not in case.bad:
            raise BrokenError(f"the line is wrong, bad are {sorted(case.bad)}: {message!r}")


def _check_good_records(seen: str, trained: str, kind: str) -> None:
    counts = Counter(re.findall(r"[qa]z\d+z[qa]", seen)), Counter(re.findall(r"[qa]z\d+z[qa]", trained))
    for number in range(NUM_GOOD):
        question, answer = f"qz{number}zq", f"az{number}za"
        if not counts[0][question] or (kind != "prompt" and counts[0][question] > (2 if kind == "preference" else 1)):
            raise BrokenError(f"good record {number}: its question is there {counts[0][question]} times")
        if not counts[1][answer] and kind != "prompt":
            raise BrokenError(f"good record {number}: its answer is not trained")
