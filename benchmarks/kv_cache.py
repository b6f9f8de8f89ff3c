"""What it costs, and spares, to keep keys and values in 8 bits while texts are written.

    python benchmarks/kv_cache.py --model SmolLM2-135M-Instruct --text wikitext2/valid.txt --json results.jsonl

So many windows of the text are read token by token behind a prompt, as completions are written, once with each cache.
Both read the same tokens, so that their distributions can be compared: perplexity, the mean KL divergence from the
exact cache's, and the share of tokens with the same likeliest successor. Contenders run in turns.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.runner import append_run
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import output_head
from llm_lightning.rollouts.slots import Slots, rollout_mode

DTYPES = ("auto", "int8")


@torch.no_grad()
def read(network: Any, windows: Tensor, prompt: int, dtype: Any) -> tuple[Tensor, float, int]:
    """Log-probabilities (tokens, windows, V), CPU-seconds behind the prompts, and bytes of the cache at the end."""
    with rollout_mode(network):
        slots = Slots(network, dtype)
        list(slots.admit(list(windows[:, :prompt]), 1, windows.numel()))
        start, logprobs = time.process_time(), []
        for tokens in windows[:, prompt:].T:
            logprobs.append(output_head(network)(slots.append(tokens)).float().log_softmax(-1))
        seconds = time.process_time() - start
    return torch.stack(logprobs), seconds, slots.keys.num_bytes + slots.values.num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8, help="that are read at the same time")
    parser.add_argument("--prompt", type=int, default=128, help="tokens before what is measured")
    parser.add_argument("--tokens", type=int, default=128, help="of a window behind its prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args()
    network = Backbone(path=args.model, dtype="float32").build()
    length = args.prompt + args.tokens
    ids = AutoTokenizer.from_pretrained(args.model)(args.text.read_text(encoding="utf-8")).input_ids
    windows = torch.tensor(ids[: args.windows * length]).view(args.windows, length)
    targets = windows[:, args.prompt + 1 :].T[..., None]
    seconds: dict[str, list[float]] = {name: [] for name in DTYPES}
    found, sizes = {}, {}
    for _ in range(args.repeats):
        for name in DTYPES:
            found[name], time_taken, sizes[name] = read(network, windows, args.prompt, name)
            seconds[name].append(time_taken)
    exact = found["auto"]
    for name in DTYPES:
        figures = {
            "perplexity": (-found[name][:-1].gather(2, targets).mean()).exp().item(),
            "kl": (exact.exp() * (exact - found[name])).sum(-1).mean().item(),
            "same_top_token": (exact.argmax(-1) == found[name].argmax(-1)).float().mean().item(),
            "cache_mb": sizes[name] / 1e6,
            "tokens_per_cpu_s": args.windows * args.tokens / statistics.median(seconds[name]),
        }
        print(name, json.dumps(figures), flush=True)
        settings = {"windows": args.windows, "prompt": args.prompt, "tokens": args.tokens, "repeats": args.repeats}
        for metric, value in figures.items():
            append_run(args.json, "kv_cache", name, "135m", (metric, value, ""), settings)


if __name__ == "__main__":
    main()
