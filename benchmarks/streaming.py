"""A stream from a web server against the same files on this disk: tokens served per second of CPU, and their peaks.

    python benchmarks/streaming.py [--quick] [--json FILE] [--megabytes 96]

The corpus is that of benchmarks/data.py, cut into files of 8 MB of JSON lines, gzipped. Each measurement reads it
once, from the text to batches, in a process of its own on an empty cache, with one core for tokenizing; contenders take
turns, medians are reported. The web server's time is not counted.

- `local`: TextDataModule on the folder, which tokenizes all of it and then serves.
- `stream`: StreamingTextDataModule on the server's URL.
- `stream-local`: StreamingTextDataModule on the folder.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.data import BATCH_SIZE, SEQ_LEN, VOCAB_SIZE, cpu_seconds, watch_memory, write_corpus

CONTENDERS = ("local", "stream", "stream-local")
FILE_MB = 8
WINDOW_TOKENS = 1 << 22


def write_files(folder: Path, megabytes: int) -> None:
    folder.mkdir()
    whole = folder / "whole.jsonl"
    write_corpus(whole, megabytes)
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.unlink()
    step = -(-len(lines) * FILE_MB // megabytes)
    for number, start in enumerate(range(0, len(lines), step)):
        data = gzip.compress(b"".join(lines[start : start + step]), 6)
        (folder / f"part-{number:03d}.jsonl.gz").write_bytes(data)


def write_tokenizer(corpus: Path, folder: Path) -> None:
    from datamodules.encoding.tokenizer import sample, train
    from datamodules.records.text_source import TextSource, text_units

    units = text_units(TextSource(str(corpus)), folder.parent / "cache")[:1]
    train(sample(units, "stop"), VOCAB_SIZE).save_pretrained(folder)


def serve(contender: str, path: str, tokenizer: str, cache: str, num_tokens: int) -> dict[str, float]:
    """Reads about all of it once, and says what that took."""
    import datamodules.pretraining
    import datamodules.streaming.datamodule  # noqa: F401 (imports take seconds, the same for all)
    from datamodules import StreamingTextDataModule, TextDataModule

    peaks = {"peak_rss_mb": 0.0, "peak_rss_of_workers_mb": 0.0}
    threading.Thread(target=watch_memory, args=(peaks,), daemon=True).start()
    begun, cpu = time.perf_counter(), cpu_seconds()
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "seq_len": SEQ_LEN,
        "batch_size": BATCH_SIZE,
        "cache_dir": cache,
    }
    if contender == "local":
        data: Any = TextDataModule(path, **settings)
    else:
        data = StreamingTextDataModule(path, window_tokens=WINDOW_TOKENS, **settings)
    data.prepare_data()
    data.setup("fit")
    num_batches = num_tokens // (SEQ_LEN * BATCH_SIZE)
    served, real, first, most = 0, 0, 0.0, 0
    while served < num_batches:
        for batch in data.train_dataloader():
            first = first or time.perf_counter() - begun
            served += 1
            real += int((batch["labels"] != -100).sum())
            if served % 50 == 0:
                most = max(most, disk_bytes(Path(cache)))
            if served == num_batches:
                break
    seconds = time.perf_counter() - begun
    data.teardown("fit")
    cpu = cpu_seconds() - cpu
    return {
        "tokens_per_cpu_s": real / cpu, "tokens_per_s": real / seconds, "first_batch_s": first,
        "disk_mb": max(most, disk_bytes(Path(cache))) / 1e6, **peaks,
    }  # fmt: skip


def disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # windows come and go
            continue
    return total


def measured(*arguments: Any) -> dict[str, float]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_all(folder: Path, megabytes: int, repeats: int) -> list[dict[str, Any]]:
    from tests.datamodules.streaming.file_server import Server

    corpus, tokenizer = folder / "corpus", folder / "tokenizer"
    write_files(corpus, megabytes)
    write_tokenizer(corpus, tokenizer)
    num_tokens = megabytes * 10**6 // 5  # less than there is, so that all read it once
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with Server(corpus).running() as server:
        for _ in range(repeats):
            for name in CONTENDERS:
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    path = f"{server.url}/" if name == "stream" else str(corpus)
                    runs[name].append(measured(name, path, tokenizer, cache, num_tokens))
    units = {"tokens_per_cpu_s": "tokens/CPU-s", "tokens_per_s": "tokens/s", "first_batch_s": "s"}
    settings = {
        **origin(),
        "megabytes": megabytes,
        "window_tokens": WINDOW_TOKENS,
        "repeats": repeats,
        "file_mb": FILE_MB,
    }
    return [
        {"benchmark": "streaming", "contender": name, "model": f"bpe-{VOCAB_SIZE}", "metric": metric,
         "value": round(statistics.median(run[metric] for run in each), 2), "unit": units.get(metric, "MB"),
         "settings": {**settings, "spread": [round(f(run[metric] for run in each), 2) for f in (min, max)]}}
        for name, each in runs.items() for metric in each[0]
    ]  # fmt: skip


def origin() -> dict[str, str]:
    """Where and when, and by which command."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("fsspec", "aiohttp", "tokenizers", "torch"))
    machine = models[0] if models else platform.machine()
    command = " ".join(["python benchmarks/streaming.py", *sys.argv[1:]])
    return {"machine": machine, "date": str(datetime.date.today()), "versions": versions, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small corpus, once: about a minute")
    parser.add_argument("--json", type=Path, help="write one object a line here")
    parser.add_argument("--megabytes", type=int, default=96)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, path, tokenizer, cache, num_tokens = arguments.child
        print(json.dumps(serve(name, path, tokenizer, cache, int(num_tokens))))
        return
    megabytes, repeats = (16, 1) if arguments.quick else (arguments.megabytes, 3)
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(Path(folder), megabytes, repeats)
    print("; ".join(origin().values()) + "\n")
    print("| contender | metric | median | unit | from, to |\n| --- | --- | ---: | --- | --- |")
    for result in results:
        spread = ", ".join(f"{value:,.5g}" for value in result["settings"]["spread"])
        print(f"| {result['contender']} | {result['metric']} | {result['value']:,.5g} | {result['unit']} | {spread} |")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
    main()
