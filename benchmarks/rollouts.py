"""Speed of sampling completions of mixed length: llm-lightning's sampler against `transformers.generate`.

    python benchmarks/rollouts.py --model 9m 135m --json results.jsonl

Both sample from the same random weights, in one process, at temperature 1 without truncation, until each completion has
its EOS or 128 tokens; `generate` gets all prompts in one left-padded batch (or, as `generate-16`, in batches of 16 of
similar length). Contenders run in turns; figures are medians. Tokens behind an EOS do not count.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.ppo_workload import LONGEST_ANSWER, PPO_SHAPES, write_models, write_prompts
from benchmarks.runner import OURS, Metric, json_lines, machine

METRICS = [
    Metric("samples_per_cpu_s", "samples/s", "samples/CPU-s", 14, ".2f"),
    Metric("samples_per_s", "samples/s", "samples/s", 11, ".2f"),
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
]


def our_completions(network: Any, prompts: list[Any], eos: int, seed: int) -> int:
    from llm_lightning.rollouts import Sampler, Sampling

    keys = [[(seed, number)] for number in range(len(prompts))]
    completions = Sampler(Sampling(LONGEST_ANSWER), [eos]).sample(network, prompts, keys)
    return sum(len(each.tokens) for each in completions)


def generated(network: Any, prompts: list[Any], eos: int, seed: int, batch_size: int | None = None) -> int:
    import torch

    torch.manual_seed(seed)
    network.eval()
    total = 0
    order = sorted(prompts, key=len) if batch_size else prompts
    for first in range(0, len(order), batch_size or len(order)):
        batch = order[first : first + (batch_size or len(order))]
        width = max(map(len, batch))
        ids = torch.stack([torch.cat([torch.full((width - len(p),), eos), p]) for p in batch])
        mask = torch.stack([torch.arange(width) >= width - len(p) for p in batch]).long()
        batch_of = {"input_ids": ids, "attention_mask": mask}
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": eos, "use_cache": True}
        rows = network.generate(
            **{name: x.to(network.device) for name, x in batch_of.items()}, max_new_tokens=LONGEST_ANSWER, **options
        )
        completions = rows[:, width:]
        over = (completions == eos).cumsum(1)
        total += int(((over == 0) | ((over == 1) & (completions == eos))).sum())
    return total


CONTENDERS: dict[str, Callable[..., int]] = {
    OURS: our_completions,
    "generate": generated,
    "generate-16": lambda *args: generated(*args, batch_size=16),
}


def benchmark(model: str, args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    from llm_lightning.models.backbone import Backbone
    from llm_lightning.run.precision import use_fast_float32

    if args.device == "cpu":
        use_fast_float32()
    count = args.answers or PPO_SHAPES[model].num_answers
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        policy, _ = write_models(Path(folder), model)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        prompts = [torch.tensor(ids) for ids in write_prompts(Path(folder) / "prompts.jsonl", tokenizer, count)]
        dtype = "bfloat16" if args.precision == "bf16-mixed" else "float32"
        network = Backbone(path=str(policy), dtype=dtype).build().to(args.device)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    lengths: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(args.repeats + 1):
        for name, write in CONTENDERS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = write(network, prompts, tokenizer.eos_token_id, turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn:  # the first warms up
                row = {"samples_per_cpu_s": count / cpu, "samples_per_s": count / wall, "tokens_per_s": tokens / wall}
                figures[name].append(row)
                lengths[name].append(tokens / count)
    settings = machine(args.device) | {
        "answers": count,
        "precision": args.precision,
        "threads": torch.get_num_threads(),
        "longest": LONGEST_ANSWER,
    }
    print(f"\n{model}, {count} texts, {settings['threads']} threads, {settings['machine']}, torch {settings['torch']}")
    ours = statistics.median(row["samples_per_cpu_s"] for row in figures[OURS])
    for name, rows in figures.items():
        values = {metric.name: statistics.median(row[metric.name] for row in rows) for metric in METRICS}
        line = "".join(f"{values[metric.name]:>{metric.width}{metric.format}}" for metric in METRICS)
        mean = statistics.mean(lengths[name])
        print(f"{name:16}{line}   mean length {mean:5.1f}   ours {ours / values['samples_per_cpu_s']:.2f}x")
    if args.json:
        with args.json.open("a") as file:
            file.writelines(f"{line}\n" for line in json_lines("rollouts", model, figures, METRICS, settings))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(PPO_SHAPES), default=["9m"])
    parser.add_argument("--answers", type=int, help="default: those of a PPO step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="9m, 16 completions, one repeat")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true", help="mixed: bf16 weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.answers, args.repeats = ["9m"], 16, 1
    for model in args.model:
        benchmark(model, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
