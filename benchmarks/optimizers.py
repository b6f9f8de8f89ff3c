"""Muon beside AdamW: steps to one loss, each at its best learning rate, and what a step costs.

    python benchmarks/optimizers.py --folder optimizers learning
    python benchmarks/optimizers.py --folder optimizers speed

`learning`: the 9M shape on the documentation of Python's library, by the real command line: 400 steps of 4,096 tokens,
or --steps of --batch_size rows of 512. Each optimizer is tried at each learning rate with the first seed; all seeds
then run at the best one. A run reaches the target where the line between two validations does: the worst of AdamW's
last losses. What is in --folder is not done again. `speed`: CPU-seconds of whole steps, the two in turns, at several
numbers of tokens a step.
"""

import argparse
import csv
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.preference_learning import llm_lightning
from benchmarks.workload import SHAPES

VOCAB, SEQ_LEN = 8192, 512
VALIDATIONS = 10
CONFIG = SHAPES["9m", "cpu"].config
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("torch.optim.AdamW", {"betas": [0.9, 0.95], "weight_decay": 0.1, "fused": True}),
    "Muon": ("llm_lightning.optimizers.Muon", {"weight_decay": 0.1}),
}
Losses = list[tuple[float, float]]
"""Steps and the loss on held-out documents."""


def fit_9m(
    run: Path, args: argparse.Namespace, optimizer: dict[str, Any], seed: int, interval: int, *more: str
) -> None:
    """Train the 9M shape from scratch on the documentation of Python's library, validating every `interval` steps."""
    backbone = {"config": {"class_path": "transformers.LlamaConfig", "init_args": CONFIG | {"vocab_size": VOCAB}}}
    llm_lightning(
        "fit", "--model=CausalPretraining", f"--model.backbone={json.dumps(backbone)}",
        f"--model.optimizer={json.dumps(optimizer)}", "--model.schedule.warmup=0.05", "--data=TextDataModule",
        "--data.path=python_docs", f"--data.vocab_size={VOCAB}", f"--data.seq_len={SEQ_LEN}",
        f"--data.batch_size={args.batch_size}", "--data.val_share=0.005", f"--seed_everything={seed}",
        f"--data.seed={seed}", f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={interval}",
        "--trainer.precision=32-true", f"--trainer.default_root_dir={run}", *more,
    )  # fmt: skip


def trained(args: argparse.Namespace, name: str, lr: float, seed: int) -> Losses:
    """The validation losses of a run, which is made where that was not done."""
    run, steps = args.folder / f"{name}-{lr:g}-{seed}", args.steps
    kept = args.folder / f"{run.name}.json"
    if not kept.exists():
        class_path, settings = OPTIMIZERS[name]
        fit_9m(run, args, {"class_path": class_path, "init_args": settings | {"lr": lr}}, seed, steps // VALIDATIONS)
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("val/loss") and float(row["step"]) > 0]
        kept.write_text(json.dumps([(float(row["step"]), float(row["val/loss"])) for row in rows]))
    return [(step, loss) for step, loss in json.loads(kept.read_text())]


def steps_to(losses: Losses, target: float) -> float | None:
    """Where the line between validations reaches the target; None: it never does."""
    for (step, loss), (following, lower) in itertools.pairwise(losses):
        if lower <= target < loss:
            return step + (following - step) * (loss - target) / (loss - lower)
    return losses[0][0] if losses[0][1] <= target else None


def learning(args: argparse.Namespace) -> None:
    """Tune, then run all seeds."""
    runs: dict[str, list[Losses]] = {}
    for name, rates in (("AdamW", args.adamw), ("Muon", args.muon)):
        tried = {lr: trained(args, name, lr, args.seeds[0])[-1][1] for lr in rates}
        print(name, ", ".join(f"lr {lr:g}: {loss:.4f}" for lr, loss in tried.items()), flush=True)
        best = min(tried, key=lambda lr: tried[lr])
        if best in (min(rates), max(rates)):
            print(f"{name}: the best rate is at the grid's end", flush=True)
        runs[name] = [trained(args, name, best, seed) for seed in args.seeds]
    target = max(losses[-1][1] for losses in runs["AdamW"])
    for name, found in runs.items():
        last = " ".join(f"{losses[-1][1]:.4f}" for losses in found)
        reached = [steps_to(losses, target) for losses in found]
        print(f"{name:6} last losses {last}; steps to {target:.4f}: {reached}", flush=True)


def speed(args: argparse.Namespace) -> None:
    """Forward, backward and step in one process, in turns."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_lightning.modules.decay import block_matrices, decay_groups
    from llm_lightning.optimizers import Muon

    torch.manual_seed(0)
    config = LlamaConfig(**CONFIG | {"vocab_size": VOCAB})
    contenders: dict[str, tuple[LlamaForCausalLM, Any]] = {}
    for name in OPTIMIZERS:
        model = LlamaForCausalLM(config)
        groups = decay_groups(model)
        optimizer = Muon(groups) if name == "Muon" else torch.optim.AdamW(groups, fused=True)
        if isinstance(optimizer, Muon):
            optimizer.orthogonalize(block_matrices(model))
        contenders[name] = model, optimizer
    for rows in args.rows:
        ids = torch.randint(VOCAB, (rows, SEQ_LEN))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.repeats):
            for name, (model, optimizer) in contenders.items():
                start = time.process_time()
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds[name].append(time.process_time() - start)
        adamw, muon = (statistics.median(seconds[name][1:]) for name in ("AdamW", "Muon"))
        print(
            f"{rows * SEQ_LEN:6} tokens a step: AdamW {adamw:.3f} s, Muon {muon:.3f} s, {muon / adamw:.3f}x", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {task.__name__: task for task in (learning, speed)}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=8, help="of `learning`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--adamw", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3], help="learning rates")
    parser.add_argument("--muon", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3], help="learning rates")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32], help="of 512 tokens, for `speed`")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks[args.task](args)


if __name__ == "__main__":
    main()
