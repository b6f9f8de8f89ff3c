"""What trying an architecture out costs, and what one document a row costs against packed rows.

    python benchmarks/one_document_a_row.py

The first part takes CPU-seconds of `examine` for configs with their classes' numbers, each in a process of its own that
has imported everything but the architecture. The second runs a small Llama forward and backward over packed rows of
documents of mixed length, as it does, and as if its documents had to be taken apart. The ways take turns, and medians
of trained tokens a CPU-second are reported.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.workload import SHAPES
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.examination.examination import examine
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.models.tasks import LANGUAGE
from llm_lightning.process.allocator import keep_freed_memory

TRIED = ("LlamaConfig", "MixtralConfig", "MambaConfig", "Qwen3NextConfig")
ROWS, ROW = 2, 1024


def cpu_seconds_to_try(name: str) -> float:
    """In a fresh process, with the architecture's own imports."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        start = time.process_time()
        examine(getattr(transformers, name)(), ATTENTION, LANGUAGE)
        os.write(writer, f"{time.process_time() - start}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        seconds = float(pipe.read())
    os.waitpid(child, 0)
    return seconds


def packed_rows(seed: int) -> dict[str, torch.Tensor]:
    """Rows full of documents whose lengths are log-normal around 200 tokens, the last of each cut."""
    rng = np.random.default_rng(seed)
    positions = []
    for _ in range(ROWS):
        row: list[int] = []
        while len(row) < ROW:
            row += range(min(int(rng.lognormal(np.log(200), 1.0)) + 2, ROW - len(row)))
        positions.append(row)
    position_ids = torch.tensor(positions)
    input_ids = torch.from_numpy(rng.integers(0, 8192, (ROWS, ROW)))
    return {
        "input_ids": input_ids,
        "labels": input_ids.where(position_ids > 0, -100),
        "position_ids": position_ids,
    }


def tokens_a_cpu_second(network: torch.nn.Module, seed: int) -> float:
    prepared = prepare_batch(packed_rows(seed))
    start = time.process_time()
    language_loss(network, prepared).loss.backward()
    return len(prepared["targets"]) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in TRIED:
        print(f"{name:>16}: tried out in {cpu_seconds_to_try(name):.1f} CPU-seconds", flush=True)

    keep_freed_memory()
    torch.manual_seed(0)
    network = Backbone(config=transformers.LlamaConfig(**SHAPES["9m", "cpu"].config)).build()
    packs = behaviour_of(network)
    ways = {"packed": packs, "one document a row": replace(packs, packs=False, attention="sdpa")}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            network.set_attn_implementation(way.attention)
            way.attach(network)
            found[name].append(tokens_a_cpu_second(network, repeat))
    for name, values in found.items():
        print(f"{name}: {statistics.median(values[1:]):,.0f} tokens a CPU-second")


if __name__ == "__main__":
    main()
