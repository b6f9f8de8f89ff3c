"""Tokenizing everything once, in parallel: what is in the cache stays, what is missing is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from datamodules.cache import build_lock, key_of, remove_leftovers
from datamodules.encoding.tokenizer import backend_state
from datamodules.errors import DataError
from datamodules.sources.bad_records import OnBadRecord, bad_record_error
from datamodules.sources.units import Unit
from datamodules.storage.shards import Encoder, Shard, write_shard
from llm_lightning_safety.files import atomic_file


def tokenize(units: Sequence[Unit], encoder: Encoder, root: Path, on_bad_record: OnBadRecord = "stop") -> list[Shard]:
    """The units' token shards, in the units' order; those that are not in the cache yet are made, by all cores.

    Raises:
        DataError: a bad record, with `on_bad_record="stop"`; or the disk is full. What was made until then is kept.
    """
    folder = root / "tokens" / encoder_digest(encoder)
    shards = [Shard.of(unit, folder) for unit in units]
    if not all(shard.complete for shard in shards):
        with build_lock(folder, "the tokens of this data"):
            remove_leftovers(folder)
            damaged = sum(Path(f"{shard.path}.json").exists() and not shard.complete for shard in shards)
            if damaged:
                words = f"{damaged:,} files of tokens in {folder} are not as they were written: they are made anew"
                print(words, file=sys.stderr, flush=True)
            missing = {shard.path: unit for unit, shard in zip(units, shards, strict=True) if not shard.complete}
            _make(missing, encoder, folder, on_bad_record)
    if on_bad_record == "stop":
        for shard in shards:
            if shard.statistics["num_bad"]:
                raise bad_record_error(shard.statistics["first_bad"])
    return shards


def available_cores() -> int:
    """The cores that this process may use, which a scheduler often makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def encoder_digest(encoder: Encoder) -> str:
    """Names what the encoder makes of records."""
    return key_of(type(encoder).__name__, backend_state(encoder.tokenizer), encoder.settings())


def _make(missing: dict[str, Unit], encoder: Encoder, folder: Path, on_bad_record: OnBadRecord) -> None:
    jobs = deque(sorted(missing.items(), key=lambda job: -job[1].size))  # big ones first, or one core works alone last
    total = sum(unit.size for unit in missing.values())
    processes = min(len(jobs), available_cores())
    with tqdm(total=total or None, desc="Tokenizing", unit="B", unit_scale=True, disable=not jobs) as progress:
        if processes <= 1:
            for path, unit in jobs:
                write_shard(unit, Shard(path), encoder, on_bad_record)
                progress.update(unit.size)
            return
        file = folder / "tokenizer.json"
        with atomic_file(file) as temporary:
            encoder.tokenizer.save(str(temporary))
        kind = f"{type(encoder).__module__}:{type(encoder).__name__}"
        setup = {"encoder": kind, "tokenizer": str(file), "on_bad_record": on_bad_record}
        _run_workers(processes, setup | {"settings": encoder.settings()}, jobs, progress)


def _run_workers(count: int, setup: dict, jobs: deque[tuple[str, Unit]], progress: tqdm) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "datamodules.encoding.worker"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                drivers = [pool.submit(_drive, worker, setup, jobs, progress) for worker in workers]
                for driver in as_completed(drivers):
                    driver.result()
            except BaseException:
                # The first failure ends the others' work too: the user is waiting for the message.
                jobs.clear()
                for worker in workers:
                    worker.kill()
                raise
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)


def _drive(worker: subprocess.Popen, setup: dict, jobs: deque[tuple[str, Unit]], progress: tqdm) -> None:
    """Feeds one worker until the jobs are done."""
    assert worker.stdin is not None and worker.stdout is not None
    print(json.dumps(setup), file=worker.stdin, flush=True)
    while jobs:
        try:
            path, unit = jobs.popleft()
        except IndexError:  # another driver took the last one
            break
        print(json.dumps({"unit": asdict(unit), "shard": path}), file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"a tokenizing process ended with code {worker.wait()} while reading {unit.path}")
        if error := json.loads(answer).get("error"):
            raise DataError(error)
        progress.update(unit.size)
    worker.stdin.close()
