"""`llm-lightning ablate`: does the synthetic data help? The same budget with it and without it, over several seeds."""

import csv
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % and 1, 2, ... degrees of freedom."""

METRIC = "val/loss"

USAGE = """\
usage: llm-lightning ablate [--seeds N] [--config FILE ...] [--KEY VALUE ...]

Trains a SyntheticDataModule's data with its synthetic records and without them (data.share=0), each for the
trainer.max_steps of the configuration and for N seeds (3 by default), and prints the difference of the loss on the real
validation data with its 95 % interval. The other settings are those of `fit`.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: those of `fit`, and `--seeds`.
        debug: show the traceback of an error.
    """
    if not args or "--help" in args:
        print(USAGE, end="")
        return 0
    parser = FlagParser("llm-lightning ablate", add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3)
    try:
        known, fit_args = parser.parse_known_args(args)
        losses = ablate(fit_args, known.seeds)
    except UserError as error:
        return report(error, debug)
    print(table(losses))
    return 0


def ablate(fit_args: list[str], num_seeds: int) -> list[tuple[float, float]]:
    """For each seed the last validation losses without and with synthetic records.

    Raises:
        UserError: the configuration has nothing to compare, or a run failed.
    """
    if not 2 <= num_seeds <= len(T_95) + 1:
        raise UserError(f"--seeds {num_seeds}: an interval needs 2 to {len(T_95) + 1}.")
    config = yaml.safe_load(_llm_lightning(["fit", *fit_args, "--print_config"], capture=True))
    data, trainer = config["data"] or {}, config["trainer"]
    if not str(data.get("class_path")).endswith("SyntheticDataModule"):
        raise UserError("ablate: the data is no SyntheticDataModule, so there is nothing to leave out.")
    if trainer["max_steps"] <= 0:
        raise UserError("trainer.max_steps: set it, so that both have one budget; an epoch is longer with more data.")
    root = Path(trainer["default_root_dir"] or "runs") / "ablation"
    losses = []
    for seed in range(1, num_seeds + 1):
        pair = [_loss(fit_args, share, seed, root) for share in (0, data["init_args"]["share"])]
        losses.append((pair[0], pair[1]))
    return losses


def _loss(fit_args: list[str], share: float, seed: int, root: Path) -> float:
    folder = root / f"{'with' if share else 'without'}-seed-{seed}"
    own = {"data.share": share, "seed_everything": seed, "data.data.seed": seed, "trainer.default_root_dir": folder}
    _llm_lightning(["fit", *fit_args, *(f"--{key}={value}" for key, value in own.items())])
    return last_value(folder / "metrics.csv", METRIC)


def last_value(path: Path, metric: str) -> float:
    """A metric's last value in a run's metrics file; raises `UserError` where there is none."""
    with path.open(newline="") as file:
        values = [row[metric] for row in csv.DictReader(file) if row.get(metric)]
    if not values:
        raise UserError(f"{path} has no {metric}: nothing was validated. Lower trainer.val_check_interval.")
    return float(values[-1])


def _llm_lightning(args: list[str], capture: bool = False) -> str:
    """Run one command in a process of its own, which leaves nothing behind for the next one."""
    child = subprocess.run(
        [sys.executable, "-m", "llm_lightning", *args],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if child.returncode:
        raise UserError(f"ablate: llm-lightning {args[0]} ended with exit code {child.returncode}; see above.")
    return child.stdout or ""


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval by Student's t."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), T_95[len(differences) - 2] * spread


def table(losses: Sequence[tuple[float, float]]) -> str:
    """The losses of each seed, the mean difference with its interval, and what it says."""
    lines = [f"{'seed':>6}{'without':>10}{'with':>10}{'difference':>12}   ({METRIC}, real validation data)"]
    for seed, (without, with_) in enumerate(losses, 1):
        lines.append(f"{seed:>6}{without:>10.4f}{with_:>10.4f}{with_ - without:>+12.4f}")
    mean, half = interval([with_ - without for without, with_ in losses])
    verdict = "it helps" if mean + half < 0 else "it hurts" if mean - half > 0 else "no difference is seen"
    lines.append(f"  mean difference {mean:+.4f}, 95 % interval {mean - half:+.4f} to {mean + half:+.4f}: {verdict}")
    return "\n".join(lines)
