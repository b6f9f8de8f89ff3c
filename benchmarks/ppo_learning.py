"""Whether PPO, GRPO and RLOO learn, seed by seed, with the KL to the reference watched.

    python benchmarks/ppo_learning.py --policy runs/quickstart-sft/model/best --json results.jsonl --curves curves.png
    python benchmarks/ppo_learning.py --policy runs/quickstart-sft/model/best --task reward_model
    python benchmarks/ppo_learning.py --policy SmolLM2-135M-Instruct --task no_comma --only grpo --seeds 1

`twelve_words` is a rule: 1 for twelve words, falling linearly to 0 at none and at twenty-four. In `reward_model` that
is known only from pairs: `RewardModeling` learns from them first (or `--reward-model` names one), and the rule itself
looks on with weight 0. `no_comma` is for a real chat model by LoRA: 1 for a completion without a comma. The questions
are those of `python_pairs`; none comes twice. `last` is the mean over the last five steps, beside it the rewards of
held-out questions before and after. Every run is the real command line. Exit code 1: one ended below what its task asks
for, or beyond its KL bound.
"""

import argparse
import csv
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import ROOT, machine
from datamodules.corpora import python_pairs

KL_BOUND = 30.0
NUM_WORDS = 12
PHASE = re.compile(r"throughput/(?!.*_per_s$).*_s")
COLOURS = {"ppo": "#7aa6d6", "grpo": "#d1495b", "rloo": "#3a7d44"}


@dataclass(frozen=True)
class Task:
    """What PPO is to learn.

    Args:
        rewards: as in `--model.rewards`.
        settings: flags.
        methods: of each method what it has of its own.
        steps: rollouts.
        least: what the last five steps have to reach; None: the held-out reward has to rise by `rise`.
        rise: see there.
    """

    rewards: dict[str, Any]
    settings: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]
    steps: int
    least: float | None = None
    rise: float = 0.0


def optimizer(lr: float) -> str:
    settings = {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "eps": 1e-5, "weight_decay": 0.0}}
    return f"--model.optimizer={json.dumps(settings)}"


def methods(num_answers: int, num_samples: int) -> dict[str, tuple[str, ...]]:
    """The three, with equally many completions a step."""
    groups = (f"--model.rollout.num_samples={num_samples}", f"--data.batch_size={num_answers // num_samples}")
    return {
        "ppo": (f"--data.batch_size={num_answers}", "--model.kl={coef: 0.01}"),
        "grpo": ("--model.advantages.kind=grpo", *groups, "--model.kl={coef: 0.01, estimator: k3, place: loss}"),
        "rloo": ("--model.advantages.kind=rloo", *groups, "--model.kl={coef: 0.01}"),
    }


RULE = {"function": {"class_path": "llm_lightning.rewards.Length", "init_args": {"target": NUM_WORDS}}}
NO_COMMA = {"class_path": "llm_lightning.rewards.Pattern", "init_args": {"pattern": "[^,]+", "whole": True}}
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}
COMMON = ("--model.schedule.kind=constant", "--model.schedule.warmup=2", "--model.rollout.sampling.temperature=0.7")
SMALL = (
    *COMMON, optimizer(2e-4), "--model.rollout.sampling.max_new_tokens=64", "--model.rollout.missing_eos_penalty=0.5",
    "--model.update.epochs=1", "--model.update.num_minibatches=4", "--data.max_prompt_tokens=96",
    "--data.val_share=0.02",
)  # fmt: skip
ADAPTED = (
    *COMMON, optimizer(3e-4), f"--model.peft={json.dumps(LORA)}", "--model.rollout.sampling.max_new_tokens=24",
    "--model.update.epochs=1", "--model.update.num_minibatches=2", "--data.max_prompt_tokens=64",
    "--data.val_share=0.005", "--trainer.precision=bf16-true",
)  # fmt: skip
TASKS = {
    "twelve_words": Task({"twelve_words": RULE}, SMALL, methods(64, 4), 50, least=0.9),
    "reward_model": Task({"twelve_words": RULE | {"weight": 0.0}}, SMALL, methods(64, 4), 50, rise=0.5),
    "no_comma": Task({"no_comma": {"function": NO_COMMA}}, ADAPTED, methods(16, 8), 12, rise=0.1),
}


def llm_lightning(command: str, *flags: str) -> str:
    """What it printed."""
    line = [sys.executable, "-m", "llm_lightning", command, *flags]
    child = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{child.stdout[-2000:]}")
    return child.stdout


def pairs() -> Iterator[dict[str, str]]:
    """Two lengths of a text, of which the one nearer to twelve words is better."""
    g = random.Random(1)
    records = list(python_pairs.records())
    for number, record in enumerate(records):
        # Most docstrings are shorter than twelve words; the next ones go on.
        words = " ".join(other["completion"] for other in records[number : number + 8]).split()
        better, worse = sorted(g.sample(range(1, 2 * NUM_WORDS + 1), 2), key=lambda length: abs(length - NUM_WORDS))
        if abs(better - NUM_WORDS) < abs(worse - NUM_WORDS):
            chosen, rejected = (" ".join(words[:length]) for length in (better, worse))
            yield {"prompt": record["prompt"], "chosen": chosen, "rejected": rejected}


def learned_reward(policy: Path, folder: Path) -> Path:
    """A reward model that has seen nothing but pairs."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
    llm_lightning(
        "fit", "--model=RewardModeling", f"--model.backbone.path={policy}", optimizer(3e-4),
        "--model.schedule.warmup=0.1", "--data=PreferenceDataModule", f"--data.path={folder / 'pairs.jsonl'}",
        "--data.seq_len=512", "--data.batch_size=2", "--trainer.max_epochs=1", "--trainer.val_check_interval=0.5",
        f"--trainer.default_root_dir={folder / 'reward'}",
    )  # fmt: skip
    accuracy = [row["val/accuracy"] for row in read(folder / "reward") if "val/accuracy" in row][-1]
    print(f"The reward model gets {accuracy:.3f} of its held-out pairs right.", flush=True)
    return folder / "reward/model/best"


def read(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run, row by row."""
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def run(task: Task, method: str, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A policy's training, with its held-out rewards by name before and after."""
    flags = [
        "--model=PPO", f"--model.backbone.path={args.policy}", f"--model.rewards={json.dumps(task.rewards)}",
        "--data=PromptDataModule", f"--data.path={args.prompts}", f"--data.seed={seed}", f"--model.rollout.seed={seed}",
        *task.settings, *task.methods[method],
    ]  # fmt: skip
    # An adapter that has not been trained is none.
    printed = llm_lightning("validate", *(flag for flag in flags if not flag.startswith("--model.peft")))
    before = {name: float(value) for name, value in re.findall(r"(val/reward\S*)\s+│\s+(\S+)", printed)}
    llm_lightning(
        "fit", *flags, f"--seed_everything={seed}", f"--trainer.max_steps={args.steps or task.steps}",
        f"--trainer.val_check_interval={args.steps or task.steps}", "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={folder}",
    )  # fmt: skip
    rows = read(folder)
    steps = [row for row in rows if "train/reward" in row]
    names = ("train/reward", "train/kl", "rollout/eos_rate")
    after = [row for row in rows if "val/reward" in row][-1]
    return {
        "rewards": [row["train/reward"] for row in steps],
        "kl": [row["train/kl"] for row in steps],
        "last": {name: statistics.mean(row[name] for row in steps[-5:]) for name in names},
        "before": before,
        "after": {name: after[name] for name in before},
        "seconds": sum(value for row in steps for name, value in row.items() if PHASE.fullmatch(name)),
    }


def has_reached(task: Task, result: dict[str, Any]) -> bool:
    rise = result["after"]["val/reward"] - result["before"]["val/reward"]
    reached = rise >= task.rise if task.least is None else result["last"]["train/reward"] >= task.least
    return reached and result["last"]["train/kl"] <= KL_BOUND


def draw(results: dict[str, list[dict[str, Any]]], task: Task, picture: Path) -> None:
    """Rewards and KL of each step, a line for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("rewards", "kl"), strict=True):
        for method, runs in results.items():
            for number, result in enumerate(runs):
                label = None if number else method
                steps = range(1, len(result[name]) + 1)
                axes.plot(steps, result[name], color=COLOURS[method], linewidth=1, label=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("steps")
    panels[0].set_title("reward", loc="left")
    panels[1].set_title("KL to the reference, nats a completion", loc="left")
    if task.least is not None:
        panels[0].axhline(task.least, color="#999999", linewidth=0.8)
    panels[0].legend(frameon=False)
    figure.savefig(picture, dpi=110)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, metavar="FOLDER", help="a model that answers questions")
    parser.add_argument("--task", choices=TASKS, default="twelve_words")
    parser.add_argument("--only", nargs="+", choices=COLOURS, default=list(COLOURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="default: as the task has it")
    parser.add_argument("--prompts", default="python_pairs", help="another file than the questions about Python")
    parser.add_argument("--reward-model", type=Path, metavar="FOLDER", help="instead of one that learns from pairs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="draw rewards and KL")
    args = parser.parse_args(argv)
    args.policy = args.policy.resolve()
    return args


def report(method: str, seed: int, result: dict[str, Any], args: argparse.Namespace) -> None:
    """One line of the table, and one of the file."""
    last, before, after = result["last"], result["before"], result["after"]
    held_out = "".join(f"{before[name]:>8.3f} -> {after[name]:.3f}" for name in sorted(before) if name != "val/reward")
    print(
        f"{method:6}{seed:>5}{last['train/reward']:>8.3f}{last['train/kl']:>8.2f}{last['rollout/eos_rate']:>7.2f}"
        f"{result['seconds']:>6.0f}{held_out}",
        flush=True,
    )
    if args.json:
        # A run's own folder says more than `model/best`.
        policy = args.policy.parents[1].name if args.policy.parent.name == "model" else args.policy.name
        row = {"benchmark": "ppo_learning", "contender": method, "model": policy}
        row |= {"metric": f"{args.task}_reward", "value": last["train/reward"]}
        settings = {"seed": seed, "steps": len(result["rewards"])} | result | machine("cpu")
        with args.json.open("a") as file:
            file.write(json.dumps(row | {"settings": settings}) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if a run failed to learn."""
    args = parse(argv)
    task = TASKS[args.task]
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in args.only}
    with tempfile.TemporaryDirectory(prefix="ppo-learning-") as scratch:
        if args.task == "reward_model":
            reward = args.reward_model or learned_reward(args.policy, Path(scratch))
            function = {"class_path": "llm_lightning.rewards.RewardModel", "init_args": {"path": str(reward.resolve())}}
            task = replace(task, rewards=task.rewards | {"reward_model": {"function": function}})
        print(f"{'':6}{'seed':>5}{'last':>8}{'KL':>8}{'EOS':>7}{'s':>6}   held out: {', '.join(sorted(task.rewards))}")
        for seed in args.seeds:
            for method in args.only:
                result = run(task, method, seed, args, Path(scratch) / f"{method}-{seed}")
                results[method].append(result)
                report(method, seed, result, args)
    if args.curves:
        draw(results, task, args.curves)
    return 0 if all(has_reached(task, result) for runs in results.values() for result in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
