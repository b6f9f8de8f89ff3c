"""From which length on it pays to compute a prompt once for both responses.

    python benchmarks/shared_prompts.py [--model 9m] [--json FILE]

A pair's forward and backward pass, with the prompt shared and written out twice, for prompts of several lengths before
responses of 64 tokens. As many pairs stand in a row as fit 2,048 tokens; tokens and weights mean nothing, which costs
the same. The ways take turns, and medians are reported.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import machine
from benchmarks.workload import SHAPES
from datamodules.serving.layout import SpanLayout
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.models.tasks import REWARD
from llm_lightning.process.allocator import keep_freed_memory
from llm_lightning.run.precision import use_fast_float32

ANSWER, ROW = 64, 2048
PROMPTS = (4, 8, 16, 32, 64, 128, 256, 512)


def batch(prompt: int, share: bool) -> tuple[dict, int]:
    """One row of pairs, prepared, and how many there are."""
    tokens = np.arange(prompt + ANSWER) % 1000
    own = ANSWER if share and prompt else prompt + ANSWER
    layout = SpanLayout(1, ROW, 0)
    ends: list[tuple[int, int]] = []
    while layout.lengths[0] + prompt + ANSWER + own <= ROW:
        start = layout.lengths[0]
        chosen = layout.add(0, tokens)
        ends.append((chosen, layout.add(0, tokens[-own:], slice(start, start + prompt) if share else slice(0, 0))))
    chosen_ends, rejected_ends = torch.tensor(ends).T
    return prepare_texts(layout.batch() | {"chosen_ends": chosen_ends, "rejected_ends": rejected_ends}), len(ends)


def seconds_per_pair(network: torch.nn.Module, prompt: int, share: bool) -> float:
    """Of a forward and a backward pass; what is padded at the row's end counts for the pairs in it."""
    prepared, num_pairs = batch(prompt, share)
    start = time.perf_counter()
    values = rewards(network, prepared)
    (values["chosen_ends"] - values["rejected_ends"]).sum().backward()
    seconds = time.perf_counter() - start
    used = int(prepared["documents"].spans[-1, 1]) if num_pairs else ROW
    return seconds * used / ROW / num_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["9m", "135m"], default="9m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a line")
    args = parser.parse_args()
    keep_freed_memory()
    use_fast_float32()
    from transformers import LlamaConfig

    torch.manual_seed(0)
    network = Backbone(config=LlamaConfig(**SHAPES[args.model, "cpu"].config)).build(task=REWARD)
    seconds_per_pair(network, 64, share=True)
    print(f"{'prompt':>7}{'shared ms':>12}{'twice ms':>12}{'gain':>8}")
    for prompt in PROMPTS:
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.repeats):
            for share, times in taken.items():
                times.append(1e3 * seconds_per_pair(network, prompt, share))
        shared, twice = (statistics.median(taken[share]) for share in (True, False))
        print(f"{prompt:>7}{shared:>12.1f}{twice:>12.1f}{twice / shared:>7.2f}x", flush=True)
        if args.json:
            row = {"benchmark": "shared_prompts", "contender": "llm-lightning", "model": args.model}
            row |= {"metric": "gain", "value": twice / shared, "unit": "x"}
            row |= {
                "settings": machine("cpu") | {"prompt": prompt, "answer": ANSWER, "values": taken[True] + taken[False]}
            }
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
