"""What a step of pretraining costs the host beside the network: data, hooks, the step's sums, logging.

    python benchmarks/host_work.py --json results.jsonl

A GPU that computes a step in 10 ms waits for a host that needs longer. The real command line pretrains a tiny network
on packed documents, with all callbacks, and logs each step (--every). Of each step's processor time, what forward pass,
backward pass and optimizer took is left out; the rest is the host's own work, of which the median is given. It is
processor time of the training thread, so that other programs disturb it less.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import OURS, ROOT, append_run, fit

WARMUP = 20


def command(scratch: Path, steps: int, every: int) -> list[str]:
    network = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"class_path": "transformers.LlamaConfig", "init_args": network | {"max_position_embeddings": 512}}
    settings: dict[str, Any] = {
        "model": "benchmarks.host_timer.TimedPretraining",
        "model.backbone": json.dumps({"config": config}),
        "model.result": scratch / "result.json",
        "data": "TextDataModule",
        "data.path": scratch / "texts.jsonl",
        "data.seq_len": 512,
        "data.batch_size": 8,
        "data.vocab_size": 512,
        "data.cache_dir": scratch / "cache",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": every,
        "trainer.default_root_dir": scratch / "run",
    }
    return fit(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10], help="steps from one line of logs to the next")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args()

    from datamodules.corpora.python_docs import documents

    for every in args.every:
        with tempfile.TemporaryDirectory(prefix="host-work-") as folder:
            texts = [text[:2000] for _, text in zip(range(200), documents(), strict=False)]
            (Path(folder) / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            began = time.monotonic()
            subprocess.run(command(Path(folder), args.steps, every), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            steps = json.loads((Path(folder) / "result.json").read_text())[WARMUP:]
        parts = {name: 1e3 * statistics.median(step[name] for step in steps) for name in steps[0]}
        told = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        print(f"logged every {every}: ms a step, median of {len(steps)}: {told} ({time.monotonic() - began:.0f} s)")
        settings = {"every": every, "steps": len(steps)} | {f"{name}_ms": round(ms, 3) for name, ms in parts.items()}
        append_run(args.json, "host_work", OURS, "tiny", ("host_ms", parts["host"], "ms"), settings)


if __name__ == "__main__":
    main()
