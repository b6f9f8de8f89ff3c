"""Speed of an evaluation: llm-lightning against lm-evaluation-harness's own `hf` model, same folder and same tasks.

    python benchmarks/evaluation.py --model 9m 135m --json results.jsonl

Random weights and synthetic questions: zero-shot multiple choice, the same behind five examples, the likelihood of
texts, greedy answers of 64 tokens, and these behind five examples. `hf` gets each of the batch sizes that are named,
and its best one counts. Contenders run in turns in one process; figures are medians on the CPU, and scores have to
agree. Loading does not count.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.ppo_workload import PPO_SHAPES, write_models
from benchmarks.runner import OURS, Figures, Metric, json_lines, machine

METRICS = [Metric("items_per_s", "items/s", "items/s", 10, ".2f")]
FEW_SHOT = 5
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
    },
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    "answers": {
        "output_type": "generate_until", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{text}}", "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}  # fmt: skip
JOBS = {
    "choice": ("choice", 0),
    f"choice, {FEW_SHOT} shots": ("choice", FEW_SHOT),
    "text": ("text", 0),
    "answers": ("answers", 0),
    f"answers, {FEW_SHOT} shots": ("answers", FEW_SHOT),
}


def write_tasks(folder: Path, num_items: int) -> None:
    """Tasks over questions of words that are drawn."""
    import yaml

    generator = random.Random(0)
    words = ["the", "number", "of", "items", "that", "a", "function", "returns", "is", "what", "users", "ask", "for"]

    def sentence(least: int, most: int) -> str:
        return " ".join(generator.choices(words, k=generator.randint(least, most)))

    rows = [
        {
            "question": sentence(20, 60), "choices": [sentence(1, 6) for _ in range(4)], "answer": number % 4,
            "text": sentence(60, 180),
        }
        for number in range(num_items)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / "rows.jsonl") for split in ("test", "train")}
    for name, settings in TASKS.items():
        config = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | settings))


def our_model(folder: Path) -> Any:
    from transformers import AutoTokenizer

    from llm_lightning.evaluation.harness import Engine, NetworkLM
    from llm_lightning.models.backbone import Backbone

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = Backbone(path=str(folder), dtype="float32").build(tokenizer)
    return NetworkLM(network, tokenizer, "benchmark", engine=Engine(progress=False))


def hf_model(folder: Path, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", batch_size=batch_size, device="cpu")


def timed(lm: Any, tasks: Any, name: str, num_fewshot: int) -> tuple[float, dict[str, float]]:
    """Items a second, and the scores. What lm-eval asks about the machine takes a second, which does not count."""
    from lm_eval.evaluator import evaluate

    loaded = tasks.load([name])
    loaded["tasks"][name].set_config(key="num_fewshot", value=num_fewshot)
    loaded["tasks"][name].set_fewshot_seed(seed=0)
    start = time.perf_counter()
    found = evaluate(lm, loaded, bootstrap_iters=0)
    seconds = time.perf_counter() - start
    scores = {key: value for key, value in found["results"][name].items() if isinstance(value, float)}
    return len(found["samples"][name]) / seconds, scores


def contenders(folder: Path, batch_sizes: list[int]) -> dict[str, Callable[[], Any]]:
    """A model for each run: ours would else remember its answers."""
    made: dict[str, Callable[[], Any]] = {OURS: lambda: our_model(folder)}
    for size in batch_sizes:
        made[f"hf, batches of {size}"] = lambda size=size: hf_model(folder, size)  # type: ignore[misc]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=PPO_SHAPES, default=["9m"])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    lines: list[str] = []
    for size in args.model:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_tasks(folder, args.items)
            policy = write_models(folder, size)[0]
            tasks = TaskManager(include_path=str(folder), include_defaults=False)
            for job, (name, num_fewshot) in JOBS.items():
                figures: Figures = {}
                scores: dict[str, dict[str, float]] = {}
                for _ in range(args.repeats):
                    for contender, make in contenders(policy, args.batch_sizes).items():
                        speed, scores[contender] = timed(make(), tasks, name, num_fewshot)
                        figures.setdefault(contender, []).append({"items_per_s": speed})
                check(scores)
                print(in_words(f"{size}, {job}, {args.items} items", figures), flush=True)
                settings = {"job": job, "items": args.items} | machine("cpu")
                lines += json_lines("evaluation", size, figures, METRICS, settings)
    if args.json is not None:
        args.json.write_text("\n".join(lines) + "\n")


def in_words(title: str, figures: Figures) -> str:
    """Medians, and ours against the best of the others."""
    speeds = {name: statistics.median(run["items_per_s"] for run in runs) for name, runs in figures.items()}
    lines = [title, *(f"  {name:20} {speed:10.2f} items/s" for name, speed in speeds.items())]
    others = [speed for name, speed in speeds.items() if name != OURS]
    return "\n".join([*lines, f"  {speeds[OURS] / max(others):.1f} times the best of hf", ""])


def check(scores: dict[str, dict[str, float]]) -> None:
    """Who is faster has to find the same."""
    for name, found in scores.items():
        for key, value in found.items():
            ours = scores[OURS][key]
            if abs(value - ours) > 1e-3 * max(1.0, abs(ours)):
                raise SystemExit(f"{name}: {key} is {value}, and {OURS} finds {ours}.")


if __name__ == "__main__":
    main()
