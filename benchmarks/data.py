"""The data side: tokenizing, packing, loading, and memory while reading a big corpus.

    python benchmarks/data.py [--quick] [--json FILE] [--only CONTENDER ...] [--gigabytes 2]

The corpus is the documentation of the running Python, its paragraphs drawn anew until it is as big as is wanted, as
JSON lines. Each measurement is a process of its own on an empty cache; contenders take turns, medians are reported.
On a busy machine trust the figures per core-s (seconds of CPU time, of all processes together).

- `llm-lightning`: from the file to token shards on disk, as TextDataModule does it.
- `datasets.map`: `load_dataset("json")`, then `map(tokenizer, batched=True, num_proc=cores)`, without attention masks.
- `datasets.map-fast`: the same around `encode_batch_fast` of the tokenizer's Rust core, which is the best it can do.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil

SEQ_LEN, BATCH_SIZE, VOCAB_SIZE = 1024, 8, 8192
CORES = len(os.sched_getaffinity(0))


def write_corpus(path: Path, megabytes: float) -> None:
    from datamodules.corpora import python_docs

    rng = random.Random(0)
    documents = list(python_docs.documents())
    paragraphs = [paragraph for document in documents for paragraph in document.split("\n\n")]
    lengths = [document.count("\n\n") + 1 for document in documents]
    left = megabytes * 1e6
    with path.open("w") as file:
        while left > 0:
            line = json.dumps({"text": "\n\n".join(rng.choices(paragraphs, k=rng.choice(lengths)))}) + "\n"
            file.write(line)
            left -= len(line)


def tokenize_ours(corpus: str, tokenizer_folder: str, cache: str) -> None:
    from datamodules.encoding.texts import TextEncoder
    from datamodules.encoding.tokenization import tokenize
    from datamodules.encoding.tokenizer import load_tokenizer
    from datamodules.records.text_source import TextSource, text_units

    tokenize(text_units(TextSource(corpus), Path(cache)), TextEncoder.of(load_tokenizer(tokenizer_folder)), Path(cache))


def tokenize_by_map(corpus: str, tokenizer_folder: str, cache: str, fast: bool = False) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core has a process already
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    core, eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id

    def encode(batch):
        if fast:
            return {"input_ids": [[*encoding.ids, eos] for encoding in core.encode_batch_fast(batch["text"])]}
        rows = tokenizer(batch["text"], return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*ids, eos] for ids in rows]}

    data = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=cache)
    data.map(encode, batched=True, num_proc=CORES, remove_columns=data.column_names)


def load_ours(corpus: str, tokenizer_folder: str, cache: str, num_batches: int) -> int:
    """Tokens served. With an empty cache, the whole way from text to batches."""
    from datamodules import TextDataModule

    data = TextDataModule(corpus, tokenizer=tokenizer_folder, seq_len=SEQ_LEN, batch_size=BATCH_SIZE, cache_dir=cache)
    data.prepare_data()
    data.setup("fit")
    loader, served = data.train_dataloader(), 0
    start = time.perf_counter()
    while served < num_batches:
        for _batch in loader:
            served += 1
            if served == num_batches:
                break
    print(json.dumps({"seconds": time.perf_counter() - start}))
    return served * BATCH_SIZE * SEQ_LEN


def pack(corpus: str, tokenizer_folder: str, cache: str) -> dict[str, dict[str, float]]:
    """Share of padded positions; share of the documents that fit into a row and were cut all the same."""
    from datamodules.encoding.texts import TextEncoder
    from datamodules.encoding.tokenization import tokenize
    from datamodules.encoding.tokenizer import load_tokenizer
    from datamodules.records.text_source import TextSource, text_units
    from datamodules.storage.rows import Selection, pack_rows

    root = Path(cache)
    shards = tokenize(text_units(TextSource(corpus), root), TextEncoder.of(load_tokenizer(tokenizer_folder)), root)
    index = pack_rows(shards, Selection(), SEQ_LEN, root)
    spans = index.documents()[:]
    fits = spans["length"] <= SEQ_LEN
    across = spans["start"] // SEQ_LEN != (spans["start"] + spans["length"] - 1) // SEQ_LEN
    rows_alone = -(-spans["length"] // SEQ_LEN)
    tokens = int(spans["length"].sum())
    ours = 1 - tokens / (index.statistics["num_rows"] * SEQ_LEN)
    return {
        "llm-lightning": {"padded_share": ours, "needlessly_cut_share": 0.0},
        "concatenate-and-cut": {"padded_share": 0.0, "needlessly_cut_share": float(across[fits].mean())},
        "document-a-row": {"padded_share": 1 - tokens / (int(rows_alone.sum()) * SEQ_LEN), "needlessly_cut_share": 0.0},
    }


def child(name: str, *arguments: str) -> None:
    """Runs one measurement in this process and prints what came of it as JSON."""
    # Imports take seconds, the same for all.
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    import datamodules.pretraining  # noqa: F401

    start, cpu_start = time.perf_counter(), cpu_seconds()
    outcome: dict = {}
    peaks = {"peak_rss_mb": 0.0, "peak_rss_of_workers_mb": 0.0}
    threading.Thread(target=watch_memory, args=(peaks,), daemon=True).start()
    if name in ("llm-lightning", "datasets.map", "datasets.map-fast"):
        run = {"llm-lightning": tokenize_ours}.get(name, tokenize_by_map)
        run(*arguments[:3], **({"fast": True} if name.endswith("fast") else {}))
    elif name == "load":
        outcome["tokens"] = load_ours(*arguments[:3], num_batches=int(arguments[3]))
    elif name == "pack":
        outcome["packing"] = pack(*arguments[:3])
    outcome["total_seconds"] = time.perf_counter() - start
    outcome["cpu_seconds"] = cpu_seconds() - cpu_start
    print(json.dumps({**outcome, **peaks}))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended: what a busy machine does not change."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def watch_memory(peaks: dict[str, float]) -> None:
    """Notes the peaks of this process, and of all its children together, ten times a second."""
    process = psutil.Process()
    while True:
        workers = 0
        for worker in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                workers += worker.memory_info().rss
        for name, size in (("peak_rss_mb", process.memory_info().rss), ("peak_rss_of_workers_mb", workers)):
            peaks[name] = max(peaks[name], size / 1e6)
        time.sleep(0.1)


def measure(*arguments: object) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            measured.update(json.loads(line))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small corpus, one repeat: about a minute")
    parser.add_argument("--json", type=Path, help="write one object a line here")
    parser.add_argument("--only", nargs="+", help="contenders")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="the big corpus of the memory measurement")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    with tempfile.TemporaryDirectory() as folder:
        return report(run_all(arguments, Path(folder)), arguments)


def run_all(arguments: argparse.Namespace, folder: Path) -> list[dict]:
    from datamodules.encoding.tokenizer import sample, train

    megabytes, repeats = (8, 1) if arguments.quick else (48, 3)
    sizes = (5, 20) if arguments.quick else (100 * arguments.gigabytes, 1000 * arguments.gigabytes)
    results: list[dict] = []
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    write_corpus(corpus, megabytes)
    from datamodules.records.text_source import TextSource, text_units

    train(sample(text_units(TextSource(str(corpus)), folder), "stop"), VOCAB_SIZE).save_pretrained(tokenizer)
    text_mb = sum(len(json.loads(line)["text"].encode()) for line in corpus.open()) / 1e6

    def add(contender: str, metric: str, value: float, unit: str, **settings: object) -> None:
        if not arguments.only or contender in arguments.only:
            results.append(
                {"benchmark": "data", "contender": contender, "model": f"bpe-{VOCAB_SIZE}", "metric": metric,
                 "value": round(value, 5), "unit": unit, "settings": {"cores": CORES, **settings}}
            )  # fmt: skip

    contenders = [c for c in ("llm-lightning", "datasets.map", "datasets.map-fast") if c in (arguments.only or [c])]
    runs: dict[str, list[dict]] = {contender: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                runs[contender].append(measure(contender, corpus, tokenizer, cache))
    for metric, unit, seconds in (
        ("tokenization", "MB/s", "total_seconds"),
        ("tokenization_per_core", "MB/core-s", "cpu_seconds"),
    ):
        for contender, all_measured in runs.items():
            values = [text_mb / measured[seconds] for measured in all_measured]
            spread = [round(min(values), 2), round(max(values), 2)]
            add(contender, metric, statistics.median(values), unit, text_mb=round(text_mb, 1), spread=spread)

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for contender, metrics in measure("pack", corpus, tokenizer, cache)["packing"].items():
            for metric, value in metrics.items():
                add(contender, metric, value, "share", seq_len=SEQ_LEN)
        loads = [measure("load", corpus, tokenizer, cache, 200 if arguments.quick else 5000) for _ in range(repeats)]
        rate = statistics.median(measured["tokens"] / measured["seconds"] for measured in loads)
        add("llm-lightning", "loader", rate, "tokens/s", seq_len=SEQ_LEN, batch_size=BATCH_SIZE, num_workers=0)

    corpus.unlink()
    for size in sizes if not arguments.only or "llm-lightning" in arguments.only else ():
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            write_corpus(corpus, size)
            measured = measure("load", corpus, tokenizer, cache, int(size * 40))
            duration = round(measured["total_seconds"])
            for metric in ("peak_rss_mb", "peak_rss_of_workers_mb"):
                add("llm-lightning", metric, measured[metric], "MB", corpus_mb=size, seconds=duration)
    return results


def report(results: list[dict], arguments: argparse.Namespace) -> None:
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "datasets", "torch", "numpy"))
    print(f"{datetime.date.today()}, {CORES} cores of {models[0] if models else platform.machine()}, {versions}")
    print(f"Command: `python benchmarks/data.py {' '.join(sys.argv[1:])}`\n")
    print("| contender | metric | value | unit | settings |\n| --- | --- | ---: | --- | --- |")
    for result in results:
        settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
        print(
            f"| {result['contender']} | {result['metric']} | {result['value']:,.5g} | {result['unit']} | {settings} |"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
    main()
