"""Whether a pruned network learns back more from the dense one than from the text alone, seed by seed.

    python benchmarks/distillation.py --model SmolLM2-135M-Instruct --folder recovery --json results.jsonl
    python benchmarks/distillation.py --model SmolLM2-135M-Instruct --folder recovery --text other --only labels cached

A fourth of SmolLM2-135M's feed-forward channels goes in the first eight steps, as in `benchmarks/pruning.py`, and the
run goes on for 60 steps of 1,024 tokens of one text: `own`, what follows the windows that perplexity is measured on in
wikitext2's valid.txt, or `other`, the Alpaca demonstrations.

- `labels`: next-token loss; `unlikely`: the same with less probability for what the model itself finds unlikely
  (`benchmarks/unlikely_tokens.py`), the control without a teacher.
- `teacher`: the dense network beside the student; `cached`: its 32 likeliest tokens from the disk, whose computing is
  in the time of the run.

Every run is the real command line. What is in --folder is not done again. The loss on the windows and the processor
time until then are kept at each fifteenth step; validation is not in the time.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.pruning import CALIBRATION, RECOVERY, ROWS, SEQ_LEN, Data, judge, structured, write_texts
from benchmarks.runner import ROOT, append_run

INTERVAL = 15
TEACHERS = {"teacher": "live", "cached": "cached"}
ARMS = ("labels", "unlikely", *TEACHERS)


def prepare(args: argparse.Namespace) -> Data:
    """Texts of as many tokens as a run takes, and the windows, once for all runs."""
    data = Data(args.model, args.folder)
    data.prepare(args.wikitext, args.other)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for name in ("own", "other"):
        texts = [json.loads(line)["text"] for line in (args.folder / f"{name}.jsonl").read_text().splitlines()]
        kept, tokens = [], 0
        for text in texts:
            if tokens < RECOVERY * ROWS * SEQ_LEN:
                kept.append(text)
                tokens += len(tokenizer(text).input_ids) + 1
        write_texts(args.folder / f"{name}.jsonl", kept)
    write_texts(args.folder / "windows.jsonl", tokenizer.batch_decode(data.windows))
    return data


def model_of(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """The module's settings."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": args.lr, "weight_decay": 0.0, "fused": True}}
    model: dict[str, Any] = {
        "backbone": {"path": str(args.model)},
        "optimizer": optimizer,
        "schedule": {"kind": "linear", "warmup": 0.05},
    }
    if arm in TEACHERS:
        teacher = {"path": str(args.model)}
        objective = {"labels_weight": args.labels_weight}
        model |= {"teacher": teacher, "teacher_logprobs": TEACHERS[arm], "objective": objective}
        return {"class_path": "Distillation", "init_args": model}
    name = "CausalPretraining" if arm == "labels" else "benchmarks.unlikely_tokens.UnlikelyTokens"
    return {"class_path": name, "init_args": model}


def settings_of(arm: str, seed: int, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A run as YAML."""
    pruning = {
        "structure": structured(channels=0.25),
        "criterion": {"class_path": "Wanda"},
        "schedule": {"class_path": "OneShot", "init_args": {"end": CALIBRATION}},
        "num_batches": 0,
    }
    clock = {"class_path": "benchmarks.validation_clock.ValidationClock", "init_args": {"result": f"{run}/clock.jsonl"}}
    rare = {"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 100000}}
    texts = {
        "path": str(args.folder / f"{args.text}.jsonl"),
        "val_path": str(args.folder / "windows.jsonl"),
        "seq_len": SEQ_LEN,
        "batch_size": ROWS,
        "seed": seed,
        "cache_dir": str(run / "cache"),
    }
    return {
        "seed_everything": seed,
        "model": model_of(arm, args),
        "data": {"class_path": "TextDataModule", "init_args": texts},
        "trainer": {
            "default_root_dir": str(run),
            "max_steps": args.steps,
            "val_check_interval": INTERVAL,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "precision": "32-true",
            "accelerator": "cpu",
            "callbacks": [{"class_path": "Pruning", "init_args": pruning}, clock, rare],
        },
    }


def train(arm: str, seed: int, run: Path, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """One run: its curve, what it cost, and its perplexity as it is saved."""
    run.mkdir(parents=True, exist_ok=True)
    config = run / "benchmark.yaml"
    config.write_text(yaml.safe_dump(settings_of(arm, seed, run, args)))
    line = [sys.executable, "-m", "llm_lightning"]
    cache_s = 0.0
    if arm == "cached":
        began = children_cpu()
        call([*line, "distill-cache", "--config", str(config)])
        cache_s = children_cpu() - began
    call([*line, "fit", "--config", str(config)])
    curve = [json.loads(row) for row in (run / "clock.jsonl").read_text().splitlines()]
    network = AutoModelForCausalLM.from_pretrained(run / "model" / "last", dtype=torch.float32)
    return {"curve": curve, "cache_s": cache_s, "perplexity": judge(network, data.windows)["perplexity"]}


def children_cpu() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(line: list[str]) -> None:
    child = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{child.stdout[-2000:]}")


def show(arm: str, seed: int, found: dict[str, Any]) -> None:
    """One line: perplexity by step and by time."""
    curve = "  ".join(
        f"{math.exp(row['loss']):.1f} ({row['step']}, {row['cpu_s'] + found['cache_s']:.0f} s)"
        for row in found["curve"]
    )
    print(f"{arm:9}{seed:3}  saved {found['perplexity']:.2f}   {curve}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M as a folder with safetensors")
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs and results")
    parser.add_argument("--text", choices=("own", "other"), default="own")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=RECOVERY)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--labels-weight", type=float, default=0.1, help="of the next-token loss beside the teacher's")
    parser.add_argument("--wikitext", type=Path, default=ROOT / "../shared/data/wikitext2/valid.txt")
    parser.add_argument("--other", type=Path, default=ROOT / "../shared/data/llamafactory/alpaca_en_demo.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a run")
    args = parser.parse_args()
    args.model, args.folder = args.model.resolve(), args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = prepare(args)
    found: dict[str, list[float]] = {arm: [] for arm in args.only}
    for seed in args.seeds:
        for arm in args.only:
            run = args.folder / f"{args.text}-{arm}-{seed}"
            kept = run.with_name(run.name + ".json")
            if not kept.exists():
                result = train(arm, seed, run, data, args)
                kept.write_text(json.dumps(result))
                settings = {"seed": seed, "steps": args.steps, "lr": args.lr, "text": args.text}
                settings |= result | {"labels_weight": args.labels_weight}
                metric = ("perplexity", result["perplexity"], "")
                append_run(args.json, "distillation", arm, "135m", metric, settings)
            result = json.loads(kept.read_text())
            found[arm].append(result["perplexity"])
            show(arm, seed, result)
    for arm, values in found.items():
        print(f"{arm:9} mean perplexity {statistics.fmean(values):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
