"""Training from scratch with fewer weights, or fewer bits: the loss on held-out text, beside the dense network's.

    python benchmarks/from_scratch.py --folder from_scratch --json results.jsonl

The 9M shape on the documentation of Python's library, 400 steps of 4,096 tokens, or --steps of --batch_size rows of
512, by the real command line; all arms have the same learning rate.

- `static`: 80 % of the matrices' weights are zero from the second step on, those of the smallest initial values;
  `regrow`: as many, exchanged for others twenty times in the first three quarters of the run (RigL).
- `ternary`, `int1`: weights of three and of two values, by `QuantizationAwareTraining`; the loss is that of the rounded
  network.

What is in --folder is not done again.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.optimizers import SEQ_LEN, fit_9m
from benchmarks.runner import append_run

SPARSITY = 0.8
ARMS = ("dense", "static", "regrow", "ternary", "int1")


def callbacks_of(arm: str, steps: int) -> list[dict[str, Any]]:
    """As YAML has them."""
    if arm == "dense":
        return []
    if arm in ("ternary", "int1"):
        return [{"class_path": "QuantizationAwareTraining", "init_args": {"scheme": arm}}]
    schedule = {
        "static": {"class_path": "Constant", "init_args": {"begin": 1}},
        "regrow": {"class_path": "Regrow", "init_args": {"interval": max(steps // 27, 1)}},
    }[arm]
    structure = {"class_path": "Unstructured", "init_args": {"sparsity": SPARSITY}}
    pruning = {"structure": structure, "criterion": "Magnitude", "schedule": schedule, "num_batches": 0}
    return [{"class_path": "Pruning", "init_args": pruning}]


def trained(args: argparse.Namespace, arm: str, seed: int) -> float:
    """The last validation loss of a run, which is made where that was not done."""
    run = args.folder / f"{arm}-{seed}"
    kept = args.folder / f"{run.name}.json"
    if not kept.exists():
        adamw = {"lr": args.lr, "betas": [0.9, 0.95], "weight_decay": 0.1, "fused": True}
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": adamw}
        callbacks = f"--trainer.callbacks={json.dumps(callbacks_of(arm, args.steps))}"
        fit_9m(run, args, optimizer, seed, max(args.steps // 4, 1), callbacks)
        with (run / "metrics.csv").open() as file:
            losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
        kept.write_text(json.dumps(losses))
        settings = {"seed": seed, "steps": args.steps, "tokens_per_step": args.batch_size * SEQ_LEN, "lr": args.lr}
        append_run(args.json, "from_scratch", arm, "9m", ("val/loss", losses[-1], "nats"), settings)
    return float(json.loads(kept.read_text())[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3, help="of AdamW")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[float]] = {arm: [] for arm in args.only}
    for seed in args.seeds:
        for arm in args.only:
            found[arm].append(trained(args, arm, seed))
            print(f"{arm:8} seed {seed}: {found[arm][-1]:.4f}", flush=True)
    for arm, losses in found.items():
        print(f"{arm:8} mean {statistics.fmean(losses):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
