"""The filters of synthetic data: what 100,000 records cost on one core, and what they find of what was planted.

    python benchmarks/synthetic_filters.py [--quick] [--json FILE] [--only speed CASE ...] [--records 100000]

Speed: records of sentences drawn from Alpaca's demonstrations and GSM8K, as JSON lines on disk, through all filters
that need no model, in a process of its own; also a fourth of them, to see whether memory grows with their number.
Finding: real records with known faults among them (`benchmarks/planted.py`), precision and recall for each filter,
and what the bounded search for the nearest seed finds of what comparing with all finds.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.planted import CASES, DATA, alpaca, candidate, conversation, edited, gsm8k, seed_tasks  # noqa: E402

SPEED, NEAREST = "speed", "nearest"
ALL = [SPEED, *CASES, NEAREST]
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def write_records(path: Path, data: Path, count: int) -> None:
    """Prompts and answers, each of as many sentences as a real one, drawn from all of them."""
    rng = random.Random(0)
    real = alpaca(data) + gsm8k(data, "train")[:3700]
    sentences = [[sentence for pair in real for sentence in SENTENCE.split(pair[side])] for side in (0, 1)]
    lengths = [(len(SENTENCE.split(prompt)), len(SENTENCE.split(answer))) for prompt, answer in real]
    with path.open("w") as file:
        for _ in range(count):
            parts = [" ".join(rng.choices(of, k=k)) for of, k in zip(sentences, rng.choice(lengths), strict=True)]
            file.write(json.dumps(parts) + "\n")


def run_all(path: Path, data: Path) -> dict[str, Any]:
    """All filters over the records of a file, in this process."""
    from datamodules.synthetic import filters as f
    from datamodules.synthetic.candidate import Candidate
    from datamodules.synthetic.funnel import Context, run_filters

    def candidates() -> Iterator[Candidate]:
        with path.open() as file:
            for number, line in enumerate(file):
                yield candidate(number, json.loads(line))

    seeds, held_out = gsm8k(data, "train")[3700:] + seed_tasks(data), gsm8k(data, "test")
    context = Context(lambda: map(conversation, seeds), lambda: map(conversation, held_out), None, path.parent)
    chosen: list[f.Filter] = [
        f.Format(), f.Length(), f.Language(["en"]), f.ExactDuplicates(), f.NearDuplicates(), f.SeedSimilarity(),
        f.Decontamination(), f.PersonalData(),
    ]  # fmt: skip
    before = peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    funnel = run_filters(chosen, candidates, context)
    num_kept = sum(1 for _ in funnel.kept())
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_mb": peak_mb(),
        "rss_before_mb": before,
        "num_records": funnel.num_in,
        "num_kept": num_kept,
        "table": funnel.table(),
    }


def peak_mb() -> float:
    """Of this process since its program began; getrusage would count what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def speed(data: Path, count: int, scratch: Path) -> dict[str, Any]:
    """`run_all` in a process of its own."""
    path = scratch / f"{count}.jsonl"
    write_records(path, data, count)
    command = [sys.executable, __file__, "--child", str(path), "--data", str(data)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)


def nearest(data: Path, count: int) -> dict[str, float]:
    """Of edited prompts that are nearer than 0.7 to a real one, the share for which the bounded search finds that."""
    from rapidfuzz.distance.LCSseq import similarity

    from datamodules.records.words import Coder
    from datamodules.synthetic.filters.nearest import Nearest

    rng, coder = random.Random(8), Coder()
    prompts = [prompt for prompt, _ in gsm8k(data, "train") + seed_tasks(data) + alpaca(data)]
    words = " ".join(prompts[:300]).split()
    search = Nearest(map(coder.learn, prompts))
    scores = []
    for share in (0.1, 0.2, 0.25, 0.3, 0.35):
        for prompt in rng.sample(prompts, count):
            text = coder.code(edited(prompt, rng, share, words))
            truth = max(2 * similarity(text, each) / max(1, len(text) + len(each)) for each in search.references)
            scores.append((truth, search.rouge_l(text)))
    near = [found for truth, found in scores if truth > 0.7]
    found = sum(score > 0.7 for score in near) / len(near)
    return {"num_references": len(search.references), "num_near": len(near), "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder shared/data")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--planted", type=int, default=200, help="faulty records of each kind")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--quick", action="store_true", help="2,000 records, 40 faulty ones of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a figure")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_all(args.child, args.data)))
        return 0
    # They import torch, which the measured process has no use for.
    from benchmarks.runner import machine
    from callbacks.monitoring.measurement import text_table

    count, planted = (2000, 40) if args.quick else (args.records, args.planted)
    figures: list[tuple[str, str, float, str]] = []
    with tempfile.TemporaryDirectory(prefix="synthetic-filters-") as scratch:
        for size in (count // 4, count) if SPEED in args.only else ():
            measured = speed(args.data, size, Path(scratch))
            print(f"{measured.pop('table')}\n", flush=True)
            units = {"seconds": "s", "cpu_seconds": "s", "peak_rss_mb": "MB", "rss_before_mb": "MB"}
            figures += [(f"{SPEED}-{size}", name, value, units.get(name, "")) for name, value in measured.items()]
        for name in args.only:
            if name != SPEED:
                measured = (
                    nearest(args.data, planted)
                    if name == NEAREST
                    else CASES[name](args.data, planted).measure(Path(scratch))
                )
                figures += [(name, metric, value, "") for metric, value in measured.items()]
    print(text_table(["", "metric", "value"], [[case, metric, f"{value:,.3f}"] for case, metric, value, _ in figures]))
    if args.json:
        command = f"python benchmarks/synthetic_filters.py {' '.join(sys.argv[1:])}"
        settings = machine("cpu") | {"date": time.strftime("%Y-%m-%d"), "planted": planted, "command": command}
        with args.json.open("a") as file:
            for case, metric, value, unit in figures:
                row = {"benchmark": "synthetic_filters", "contender": case, "model": "", "metric": metric,
                       "value": round(value, 4), "unit": unit, "settings": settings}  # fmt: skip
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
