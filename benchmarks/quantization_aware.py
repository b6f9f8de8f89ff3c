"""What a few bits cost a network that was trained for them, and one that was not, seed by seed.

    python benchmarks/quantization_aware.py --model SmolLM2-135M-Instruct --folder aware --json results.jsonl

60 steps of 1,024 tokens of wikitext2, behind the windows that perplexity is measured on, once plain and once by
`QuantizationAwareTraining`; both are then quantized by the same `Quantization`. What that costs is how far the
quantized network's perplexity is above that of the plain network before it was quantized. Every run is the real
command line. What is in --folder is not done again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import yaml

from benchmarks.distillation import call, prepare
from benchmarks.pruning import RECOVERY, ROWS, SEQ_LEN, WINDOWS
from benchmarks.runner import ROOT, append_run

ARMS = ("plain", "aware")


def settings_of(arm: str, seed: int, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A run as YAML."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": args.lr, "weight_decay": 0.0, "fused": True}}
    model = {
        "backbone": {"path": str(args.model)},
        "optimizer": optimizer,
        "schedule": {"kind": "linear", "warmup": 0.05},
    }
    texts = {
        "path": str(args.folder / "own.jsonl"),
        "val_path": str(args.folder / "windows.jsonl"),
        "seq_len": SEQ_LEN,
        "batch_size": ROWS,
        "seed": seed,
        "cache_dir": str(args.folder / "cache"),
    }
    quantization = {"schemes": [args.scheme], "num_batches": WINDOWS}
    callbacks: list[dict[str, Any]] = [
        {"class_path": "Quantization", "init_args": quantization},
        {"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 100000}},
    ]
    if arm == "aware":
        callbacks.append({"class_path": "QuantizationAwareTraining", "init_args": {"start": args.start}})
    return {
        "seed_everything": seed,
        "model": {"class_path": "CausalPretraining", "init_args": model},
        "data": {"class_path": "TextDataModule", "init_args": texts},
        "trainer": {
            "default_root_dir": str(run),
            "max_steps": args.steps,
            "val_check_interval": args.steps,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "precision": "32-true",
            "accelerator": "cpu",
            "callbacks": callbacks,
        },
    }


def train(arm: str, seed: int, run: Path, args: argparse.Namespace) -> dict[str, float]:
    """Perplexities before and after quantizing, and what a step cost."""
    run.mkdir(parents=True, exist_ok=True)
    config = run / "benchmark.yaml"
    config.write_text(yaml.safe_dump(settings_of(arm, seed, run, args)))
    call([sys.executable, "-m", "llm_lightning", "fit", "--config", str(config)])
    report = json.loads((run / "quantization.json").read_text())
    quantized = report["schemes"][args.scheme]
    return {"original": report["original"]["perplexity"], "quantized": quantized["perplexity"], "kl": quantized["kl"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M as a folder with safetensors")
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs and results")
    parser.add_argument("--scheme", default="int4-rtn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=RECOVERY)
    parser.add_argument("--start", type=int, default=0, help="first step that rounds")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--wikitext", type=Path, default=ROOT / "../shared/data/wikitext2/valid.txt")
    parser.add_argument("--other", type=Path, default=ROOT / "../shared/data/llamafactory/alpaca_en_demo.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    args = parser.parse_args()
    args.model, args.folder = args.model.resolve(), args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare(args)
    recovered = []
    for seed in args.seeds:
        found = {}
        for arm in ARMS:
            run = args.folder / f"{args.scheme}-{arm}-{seed}"
            kept = run.with_name(run.name + ".json")
            if not kept.exists():
                kept.write_text(json.dumps(train(arm, seed, run, args)))
                made = json.loads(kept.read_text())
                metric = ("perplexity", made["quantized"], "")
                settings = {
                    "scheme": args.scheme,
                    "seed": seed,
                    "steps": args.steps,
                    "start": args.start,
                    "lr": args.lr,
                }
                append_run(args.json, "quantization_aware", arm, "135m", metric, settings | made)
            found[arm] = json.loads(kept.read_text())
            words = " ".join(f"{key} {value:.3f}" for key, value in found[arm].items())
            print(f"{args.scheme} {arm:6} seed {seed}: {words}", flush=True)
        lost = found["plain"]["quantized"] - found["plain"]["original"]
        recovered.append(1 - (found["aware"]["quantized"] - found["plain"]["original"]) / lost)
        print(f"of what {args.scheme} costs is recovered: {recovered[-1]:.0%}", flush=True)
    print(f"on average {statistics.fmean(recovered):.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
