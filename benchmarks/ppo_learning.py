"""Whether PPO, GRPO and RLOO learn: a policy is to answer in a dozen words, three seeds each, with its KL watched.

    python benchmarks/ppo_learning.py --policy runs/quickstart-sft/model/best --json results.jsonl --curves curves.png

The rule gives 1 for twelve words, falling linearly to 0 at none and at twenty-four. Reached is the mean over the last
five steps, on the prompts of the step (no prompt comes twice), and the reward of held-out prompts at the end. The run
is the real command line. A run whose reward stays below 0.9 or whose KL leaves its bound counts as failed.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import ROOT, machine

REWARD, KL_BOUND = 0.9, 30.0
RULE = {"twelve_words": {"function": {"class_path": "llm_lightning.rewards.Length", "init_args": {"target": 12}}}}
GROUPS = ["--model.num_samples=4", "--data.batch_size=8", "--model.epochs=2"]
METHODS = {
    "ppo": ["--data.batch_size=32", "--model.epochs=2", "--model.num_minibatches=2"],
    "grpo": ["--model.advantages=grpo", *GROUPS, "--model.kl={coef: 0.02, estimator: k3, place: loss}"],
    "rloo": ["--model.advantages=rloo", *GROUPS, "--model.kl={coef: 0.02}"],
}


def run(method: str, seed: int, policy: Path, steps: int, folder: Path) -> list[dict[str, float]]:
    """The metrics of each step."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "eps": 1e-5, "weight_decay": 0.0}}
    command = [
        sys.executable, "-m", "llm_lightning", "fit", "--model=PPO", f"--model.backbone.path={policy}",
        f"--model.rewards={json.dumps(RULE)}", f"--model.optimizer={json.dumps(optimizer)}",
        "--model.schedule.kind=constant", "--model.schedule.warmup=2", "--model.sampling.max_new_tokens=64",
        "--model.missing_eos_penalty=0.5", f"--model.seed={seed}", "--data=PromptDataModule",
        "--data.path=python_pairs", "--data.max_prompt_tokens=96", f"--data.seed={seed}", "--data.val_share=0.02",
        f"--seed_everything={seed}", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}",
        "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={folder}",
        *METHODS[method],
    ]  # fmt: skip
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{method}, seed {seed}, failed:\n{child.stdout[-2000:]}")
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def draw(curves: dict[str, list[list[float]]], picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (method, runs), colour in zip(curves.items(), ("#7aa6d6", "#d1495b", "#3a7d44"), strict=False):
        for number, rewards in enumerate(runs):
            axes.plot(range(1, len(rewards) + 1), rewards, color=colour, linewidth=1, label=None if number else method)
    axes.axhline(REWARD, color="#999999", linewidth=0.8)
    axes.set(xlabel="steps", ylabel="reward", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, metavar="FOLDER", help="a model that answers questions")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="draw the rewards")
    args = parser.parse_args(argv)
    curves: dict[str, list[list[float]]] = {method: [] for method in args.only}
    failures = 0
    print(f"{'':6}{'seed':>5}{'first':>8}{'last':>8}{'held out':>10}{'KL':>8}{'EOS':>7}")
    for seed in args.seeds:
        for method in args.only:
            with tempfile.TemporaryDirectory(prefix="ppo-learning-") as folder:
                rows = run(method, seed, args.policy.resolve(), args.steps, Path(folder) / "run")
            steps = [row for row in rows if "train/reward" in row]
            rewards = [row["train/reward"] for row in steps]
            last = {name: statistics.mean(row[name] for row in steps[-5:]) for name in ("train/kl", "train/eos_rate")}
            held_out = [row["val/reward"] for row in rows if "val/reward" in row][-1]
            reached = statistics.mean(rewards[-5:])
            failures += reached < REWARD or last["train/kl"] > KL_BOUND
            curves[method].append(rewards)
            first = statistics.mean(rewards[:3])
            print(
                f"{method:6}{seed:>5}{first:>8.3f}{reached:>8.3f}{held_out:>10.3f}{last['train/kl']:>8.2f}"
                f"{last['train/eos_rate']:>7.2f}",
                flush=True,
            )
            if args.json:
                settings = {"seed": seed, "steps": args.steps, "kl": last["train/kl"], "rewards": rewards}
                settings |= {"held_out": held_out} | machine("cpu")
                row = {"benchmark": "ppo_learning", "contender": method, "model": args.policy.name}
                with args.json.open("a") as file:
                    file.write(json.dumps(row | {"metric": "reward", "value": reached, "settings": settings}) + "\n")
    if args.curves:
        draw(curves, args.curves)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
