"""What a policy makes of a reward model's mistakes, and whether an ensemble of reward models keeps it from that.

    python benchmarks/overoptimization.py --policy runs/quickstart-sft/model/best --folder overoptimization
    python benchmarks/overoptimization.py --policy ... --folder overoptimization --curves curves.png

The truth is the rule of `benchmarks/ppo_learning.py`, twelve words, which the policy never sees: it is rewarded by
models that were trained on few pairs that follow the rule.

- `one`: a reward model that has seen a third of the pairs; `all`: one that has seen all of them.
- `mean`: three models, each of another third; `ensemble`: the same, less their standard deviation (`k: 1`).

PPO goes far from where it began, as KL costs next to nothing (arXiv:2210.10760). Every run is the real command line,
and what is in --folder is not done again.
"""

import argparse
import json
import statistics
import sys
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.ppo_learning import RULE, SMALL, llm_lightning, optimizer, pairs, read
from benchmarks.runner import append_run

NUM_MODELS = 3
COLOURS = {"one": "#d1495b", "all": "#7aa6d6", "mean": "#c9a227", "ensemble": "#3a7d44"}
LIKED = "liked"


def reward_models(args: argparse.Namespace) -> dict[str, Path]:
    """Trained on all pairs, and on thirds of them; their scores lie around 0."""
    records = list(islice(pairs(), args.pairs))
    parts = {"all": records} | {str(number): records[number::NUM_MODELS] for number in range(NUM_MODELS)}
    for name, part in parts.items():
        run = args.folder / f"reward-{name}"
        if (run / "done").exists():
            continue
        path = args.folder / f"pairs-{name}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in part))
        llm_lightning(
            "fit", "--model=RewardModeling", f"--model.backbone.path={args.policy}", optimizer(3e-4),
            "--model.schedule.warmup=0.1", "--model.objective.centering=0.01", "--data=PreferenceDataModule",
            f"--data.path={path}", "--data.seq_len=512", "--data.batch_size=2", "--data.val_share=0.1",
            "--trainer.max_epochs=2", "--trainer.val_check_interval=0.5", f"--trainer.default_root_dir={run}",
        )  # fmt: skip
        (run / "done").touch()
    for name in parts:
        accuracy = [row["val/accuracy"] for row in read(args.folder / f"reward-{name}") if "val/accuracy" in row]
        print(f"reward model {name}: {max(accuracy):.3f} of its held-out pairs right", flush=True)
    return {name: args.folder / f"reward-{name}/model/best" for name in parts}


def reward_of(arm: str, models: dict[str, Path]) -> dict[str, Any]:
    """As in the YAML."""
    each = {
        name: {"class_path": "llm_lightning.rewards.RewardModel", "init_args": {"path": str(path)}}
        for name, path in models.items()
    }
    if arm in ("one", "all"):
        return each["0" if arm == "one" else "all"]
    members = [each[str(number)] for number in range(NUM_MODELS)]
    init_args = {"members": members, "k": 0.0 if arm == "mean" else 1.0}
    return {"class_path": "llm_lightning.rewards.RewardEnsemble", "init_args": init_args}


def train(arm: str, seed: int, models: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """What each step of a policy's training was like."""
    run = args.folder / f"{arm}-{seed}"
    rewards = {"twelve_words": RULE | {"weight": 0.0}, LIKED: {"function": reward_of(arm, models)}}
    llm_lightning(
        "fit", "--model=PPO", f"--model.backbone.path={args.policy}", f"--model.rewards={json.dumps(rewards)}",
        "--data=PromptDataModule", "--data.path=python_pairs", f"--data.seed={seed}", f"--model.rollout.seed={seed}",
        *SMALL, "--data.batch_size=64", f"--model.kl={{coef: {args.kl}}}", f"--seed_everything={seed}",
        f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}",
        "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={run}",
    )  # fmt: skip
    steps = [row for row in read(run) if f"reward/{LIKED}" in row and "train/kl" in row]
    names = {"truth": "reward/twelve_words", "given": f"reward/{LIKED}", "kl": "train/kl", "std": f"reward/{LIKED}/std"}
    return {name: [row[column] for row in steps] for name, column in names.items() if column in steps[0]}


def show(arm: str, seed: int, result: dict[str, Any]) -> None:
    """The truth where it was best and at the end."""
    smooth = [statistics.fmean(result["truth"][max(0, i - 4) : i + 1]) for i in range(len(result["truth"]))]
    best = max(range(len(smooth)), key=smooth.__getitem__)
    given = [statistics.fmean(part) for part in (result["given"][:5], result["given"][-5:])]
    print(
        f"{arm:9}{seed:3}   truth {smooth[4]:.3f}, best {smooth[best]:.3f} at step {best + 1}, last {smooth[-1]:.3f}   "
        f"given {given[0]:+.2f} -> {given[1]:+.2f}   KL {statistics.fmean(result['kl'][-5:]):.0f}"
        + (f"   disagreement {statistics.fmean(result['std'][-5:]):.2f}" if "std" in result else ""),
        flush=True,
    )


def draw(results: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """What is given, and the truth, over the distance from the start; a line for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("given", "truth"), strict=True):
        for arm, runs in results.items():
            for number, result in enumerate(runs):
                far = [max(kl, 0.0) ** 0.5 for kl in result["kl"]]
                label = None if number else arm
                axes.plot(far, result[name], color=COLOURS[arm], linewidth=1, alpha=0.8, label=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("square root of the KL to the reference")
    panels[0].set_title("reward that is given", loc="left")
    panels[1].set_title("truth: about twelve words", loc="left")
    panels[0].legend(frameon=False)
    figure.savefig(picture, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, metavar="FOLDER", help="a model that answers questions")
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs and results")
    parser.add_argument("--only", nargs="+", choices=COLOURS, default=list(COLOURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--pairs", type=int, default=600, help="of all reward models together")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--kl", type=float, default=0.0005, help="its coefficient")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="draw them")
    args = parser.parse_args()
    args.policy, args.folder = args.policy.resolve(), args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    models = reward_models(args)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.only}
    for seed in args.seeds:
        for arm in args.only:
            kept = args.folder / f"{arm}-{seed}.json"
            if not kept.exists():
                result = train(arm, seed, models, args)
                kept.write_text(json.dumps(result))
                metric = ("truth", statistics.fmean(result["truth"][-5:]), "")
                settings = {"seed": seed, "pairs": args.pairs, "kl_coef": args.kl} | result
                append_run(args.json, "overoptimization", arm, "quickstart-sft", metric, settings)
            result = json.loads(kept.read_text())
            results[arm].append(result)
            show(arm, seed, result)
    if args.curves:
        draw(results, args.curves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
