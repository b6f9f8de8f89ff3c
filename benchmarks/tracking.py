"""What Weights & Biases costs a step: the time that logging takes of the loop, offline.

    python benchmarks/tracking.py [--json FILE]

By default every tenth step is logged (`trainer.log_every_n_steps`): a step costs a tenth of a call.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.runner import machine  # noqa: E402
from llm_lightning.loggers.wandb import WandbRun  # noqa: E402

METRICS = ("train/loss", "train/perplexity", "train/accuracy", "train/bits_per_byte", "train/grad_norm", "train/lr",
           "train/skipped_steps", "throughput/memory_mb", "throughput/tokens_per_s", "throughput/mfu")  # fmt: skip


def measure(num_calls: int) -> dict[str, float]:
    """Milliseconds of the calls of a run's logging, without the first, which starts W&B's service."""
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder:
        logger: Any = WandbRun(save_dir=folder)
        seconds = []
        for step in range(num_calls + 1):
            metrics = dict.fromkeys(METRICS, step / 7) | {"tokens": 1000.0 * step}
            started = time.perf_counter()
            logger.log_metrics(metrics, step=step)
            seconds.append(time.perf_counter() - started)
            time.sleep(0.002)  # a step, in which the service does its work
        logger.experiment.finish()
    return {
        "first_ms": seconds[0] * 1e3,
        "median_ms": median(seconds[1:]) * 1e3,
        "mean_ms": sum(seconds[1:]) / num_calls * 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a figure")
    args = parser.parse_args()
    figures = measure(args.calls)
    print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if args.json:
        settings = machine("cpu") | {
            "num_calls": args.calls,
            "num_metrics": len(METRICS),
            "date": time.strftime("%Y-%m-%d"),
        }
        with args.json.open("a") as file:
            for name, value in figures.items():
                line = {"benchmark": "tracking", "contender": "llm-lightning", "model": "", "metric": name,
                        "value": value, "unit": "ms", "settings": settings}  # fmt: skip
                file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
