"""The filters of texts: what each costs, what the comparing ones find, and what their index takes.

    python benchmarks/text_filters.py [--quick] [--json FILE] [--only speed found index memory]

Speed: each filter alone over the documentation of Python's library, in MB of UTF-8 for each CPU-second of one core,
then all of them one after the other, and tokenizing for comparison. Found: copies of those documents with words
replaced or a part left out, and which of them go. Index: exact and near duplicates among random signatures, a tenth of
which are copies. Memory: a whole preparation of texts of two sizes on one core, each in a process of its own.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from datamodules import filters as f  # noqa: E402
from datamodules.encoding.filtered_texts import FilteredTextEncoder  # noqa: E402
from datamodules.encoding.texts import TextEncoder  # noqa: E402
from datamodules.encoding.tokenizer import train  # noqa: E402
from datamodules.filters.kept import keep, read_report  # noqa: E402
from datamodules.records.text_source import TextSource, text_units, texts_of  # noqa: E402
from datamodules.sources.bad_records import BadRecords  # noqa: E402
from datamodules.storage.shards import Shard, write_shard  # noqa: E402
from datamodules.storage.similarity import ROW  # noqa: E402

CASES = ("speed", "found", "index", "memory")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SINGLE: list[f.DocumentFilter] = [
    f.Words(), f.WordLength(), f.Symbols(), f.Ellipses(), f.Bullets(), f.Alphabetic(), f.StopWords(), f.LineEnds(),
    f.ShortLines(), f.Phrases(), f.RepeatedLines(), f.RepeatedRuns(), f.Language(["en"]),
]  # fmt: skip
COMPARING: list[f.DuplicateFilter] = [f.ExactDuplicates(), f.NearDuplicates()]
Figures = Iterator[tuple[str, str, float, str]]


def corpus(scratch: Path) -> list[str]:
    units = text_units(TextSource("python_docs"), scratch)
    return [text for unit in units for text in texts_of(unit, BadRecords(unit))]


def mb_per_cpu_second(work: Callable[[], object], size: int, seconds: float) -> float:
    """Again and again for so many CPU-seconds."""
    rounds, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds or not rounds:
        work()
        rounds += 1
    return rounds * size / spent / 1e6


def speed(texts: list[str], seconds: float) -> Figures:
    size = sum(len(text.encode()) for text in texts)
    for each in SINGLE:
        rate = mb_per_cpu_second(lambda each=each: [each.fault(f.Text(text)) for text in texts], size, seconds)
        yield each.name, "speed", rate, "MB/CPU-s"
    for other in COMPARING:
        rate = mb_per_cpu_second(lambda other=other: other.signs(texts), size, seconds)
        yield other.name, "speed", rate, "MB/CPU-s"

    def every() -> None:
        for text in texts:
            seen = f.Text(text)
            for each in SINGLE:
                each.fault(seen)
        for other in COMPARING:
            other.signs(texts)

    yield "all of them", "speed", mb_per_cpu_second(every, size, seconds), "MB/CPU-s"
    tokenizer = train(iter(texts), 8192).backend_tokenizer
    rate = mb_per_cpu_second(lambda: [tokenizer.encode(text) for text in texts], size, seconds)
    yield "tokenizing", "speed", rate, "MB/CPU-s"


def found(texts: list[str], scratch: Path) -> Figures:
    """Copies follow originals; of each kind the share that goes, and what goes without being one."""
    g = random.Random(0)
    originals = [text for text in dict.fromkeys(texts) if len(text.split()) >= 100]
    words = [word for text in originals for word in text.split()]

    def replaced(share: float) -> Callable[[str], str]:
        return lambda text: " ".join(g.choice(words) if g.random() < share else word for word in text.split())

    def without(share: float) -> Callable[[str], str]:
        return lambda text: " ".join(text.split()[int(share * len(text.split())) :])

    kinds: dict[str, tuple[f.DuplicateFilter, Callable[[str], str]]] = {
        "other case and layout": (f.ExactDuplicates(), lambda text: "  ".join(text.upper().split())),
        "the first tenth left out": (f.NearDuplicates(), without(0.1)),
        "a word in a hundred replaced": (f.NearDuplicates(), replaced(0.01)),
        "a word in fifty replaced": (f.NearDuplicates(), replaced(0.02)),
        "a word in twenty replaced": (f.NearDuplicates(), replaced(0.05)),
        "the first half left out": (f.NearDuplicates(), without(0.5)),
    }
    for name, (each, change) in kinds.items():
        signs = each.signs([*originals, *map(change, originals)])
        earlier = each.earlier(lambda signs=signs: iter([signs]), scratch)
        yield f"{each.name}: {name}", "found", float((earlier[len(originals) :] >= 0).mean()), ""
    yield "near_duplicates: originals", "taken", float((earlier[: len(originals)] >= 0).mean()), ""


def random_signs(count: int, name: str) -> Iterator[np.ndarray]:
    """Of `count` documents, a tenth of which are copies of the first ones, in pieces."""
    piece, num_new = 1000, int(0.9 * count)
    for start in range(0, count, piece):
        g = np.random.default_rng(start % num_new)
        if name == "exact_duplicates":
            yield g.integers(0, 2**63, piece).astype(np.uint64)
        else:
            yield np.frombuffer(g.bytes(piece * ROW.itemsize), ROW)


def peak_mb() -> float:
    """Of this process since its program began."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3


def index(scratch: Path, name: str, count: int) -> dict[str, float]:
    each = next(each for each in COMPARING if each.name == name)
    before, start = peak_mb(), time.process_time()
    earlier = each.earlier(lambda: random_signs(count, name), scratch)
    assert 0.08 * count < (earlier >= 0).sum() < 0.12 * count
    return {"cpu_seconds": time.process_time() - start, "memory_mb": peak_mb() - before}


def memory(scratch: Path, megabytes: int) -> dict[str, float]:
    """Prepares so many MB of documents of sentences of the corpus, a tenth of them copies of the one before."""
    g, chain = random.Random(1), f.Chain([*SINGLE, *COMPARING])
    texts = list(chain.passing(corpus(scratch), chain.funnel()))
    sentences = [" ".join(sentence.split()) for text in texts for sentence in SENTENCE.split(text)]
    size, document, path = 0, "", scratch / f"{megabytes}.jsonl"
    with path.open("w") as file:
        while size < megabytes * 1e6:
            document = document if document and g.random() < 0.1 else "\n".join(g.sample(sentences, g.randrange(60)))
            size += file.write(json.dumps({"text": document}) + "\n")
    del texts, sentences
    tokenizer = train(iter([document] * 20), 600)
    encoder = FilteredTextEncoder.around(TextEncoder.of(tokenizer), chain)
    units = text_units(TextSource(str(path)), scratch)
    shards = [Shard.of(unit, scratch) for unit in units]
    before, start = peak_mb(), time.process_time()
    for unit, shard in zip(units, shards, strict=True):
        write_shard(unit, shard, encoder, "stop")
    report = read_report(keep(shards, chain, encoder.tokenizer, scratch)[1])
    spent = time.process_time() - start
    taken = sum(stage["documents"] for stage in report["stages"])
    return {
        "documents": report["documents"], "kept": report["documents"] - taken, "speed": size / spent / 1e6,
        "before_mb": before, "peak_rss_mb": peak_mb(),
    }  # fmt: skip


def in_a_process(case: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", case, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)


def child(case: str, arguments: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="text-filters-") as scratch:
        if case == "index":
            return index(Path(scratch), arguments[0], int(arguments[1]))
        return memory(Path(scratch), int(arguments[0]))


def measure(case: str, texts: list[str], scratch: Path, quick: bool) -> Figures:
    if case == "speed":
        yield from speed(texts, 0.5 if quick else 3.0)
    elif case == "found":
        yield from found(texts, scratch)
    elif case == "index":
        for name in (each.name for each in COMPARING):
            for count in (100_000,) if quick else (500_000, 1_000_000, 2_000_000):
                for metric, value in in_a_process(case, name, count).items():
                    yield f"{name}: {count:,} documents", metric, value, metric.rpartition("_")[2]
    else:
        for size in (4, 8) if quick else (32, 128):
            for metric, value in in_a_process(case, size).items():
                yield f"preparing {size} MB", metric, value, {"speed": "MB/CPU-s"}.get(metric, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--quick", action="store_true", help="in a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a figure")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], args.child[1:])))
        return 0
    from benchmarks.runner import machine

    command = f"python benchmarks/text_filters.py {' '.join(sys.argv[1:])}"
    settings: dict[str, Any] = machine("cpu") | {"date": time.strftime("%Y-%m-%d"), "command": command}
    with tempfile.TemporaryDirectory(prefix="text-filters-") as name:
        scratch = Path(name)
        texts = corpus(scratch)
        for case in args.only:
            for contender, metric, value, unit in measure(case, texts, scratch, args.quick):
                print(f"{contender:48} {metric:12} {value:14,.3f} {unit}", flush=True)
                if args.json:
                    row = {"benchmark": "text_filters", "contender": contender, "model": "", "metric": metric,
                           "value": round(value, 4), "unit": unit, "settings": settings}  # fmt: skip
                    with args.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
