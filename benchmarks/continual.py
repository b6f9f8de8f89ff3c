"""What a network learns of new texts and forgets of old ones: replay by share, L2 to the start, and EWC.

    python benchmarks/continual.py --model SmolLM2-135M-Instruct --folder continual --json results.jsonl
    python benchmarks/continual.py --model SmolLM2-135M-Instruct --folder continual --only replay-0 replay-0.25

SmolLM2-135M goes on for 60 steps of 1,024 tokens on Don Quijote in Spanish (new); what it knew is measured on
wikitext2's valid.txt in English (old). The last tenth of either is held out. Arms, of equally many tokens:

- `replay-SHARE`: so much of each batch is old text; `replay-0` is the control that only learns.
- `l2sp-STRENGTH`, `ewc-STRENGTH`: new text alone, with the callback; EWC looks at 64 pieces of the old text first.

Every run is the real command line. What is in --folder is not done again, so that the command may be stopped and called
again, with more arms or seeds. Both losses are means over the same held-out windows of 256 tokens for all arms; a
difference from the network before is given with its 95 % interval, paired by window.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runner import ROOT, machine

SEQ_LEN, ROWS, STEPS = 256, 4, 60
TEXT_CHARACTERS = 3000  # of a document, cut at the end of a paragraph
HELD_OUT = 0.1
WINDOWS = 48
PIECES = 64
ARMS = (
    "replay-0", "replay-0.05", "replay-0.1", "replay-0.25", "replay-0.5", "l2sp-300", "l2sp-3000", "ewc-3000",
    "ewc-30000",
)  # fmt: skip
Losses = dict[str, list[float]]  # of the windows of `new` and of `old`


def documents(text: str) -> list[str]:
    """Paragraphs put together to texts of a few thousand characters."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if found and len(found[-1]) < TEXT_CHARACTERS:
            found[-1] += "\n\n" + paragraph
        else:
            found.append(paragraph)
    return [each for each in found if each.strip()]


def prepare(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Writes what is trained on; (`WINDOWS`, `SEQ_LEN`) token ids of each domain to measure on."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    windows = {}
    for name, path in (("new", args.new), ("old", args.old)):
        texts = documents(path.read_text())
        num_trained = int(len(texts) * (1 - HELD_OUT))
        lines = [json.dumps({"text": text}) + "\n" for text in texts[:num_trained]]
        (args.folder / f"{name}.jsonl").write_text("".join(lines))
        ids = torch.tensor(tokenizer("\n\n".join(texts[num_trained:]), verbose=False).input_ids)
        windows[name] = torch.stack(list(ids.split(SEQ_LEN))[: min(args.windows, len(ids) // SEQ_LEN)])
    return windows


def settings_of(arm: str, seed: int, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A run as YAML."""
    way, number = arm.split("-")
    strength, share = float(number), float(number) if way == "replay" else 0.0
    new, old = str(args.folder / "new.jsonl"), str(args.folder / "old.jsonl")
    sources = [{"path": new, "weight": 1 - share}] + ([{"path": old, "weight": share}] if share else [])
    callbacks: list[dict[str, Any]] = [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 100000}}]
    if way == "l2sp":
        callbacks.append({"class_path": "L2SP", "init_args": {"strength": strength}})
    if way == "ewc":
        pieces = {"num_pieces": args.pieces, "piece_len": SEQ_LEN}
        callbacks.append({"class_path": "EWC", "init_args": {"strength": strength, "path": old, **pieces}})
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": args.lr, "weight_decay": 0.0, "fused": True}}
    return {
        "seed_everything": seed,
        "model": {
            "class_path": "CausalPretraining",
            "init_args": {
                "backbone": {"path": str(args.model)},
                "optimizer": optimizer,
                "schedule": {"kind": "wsd", "warmup": 0.05},
            },
        },
        "data": {
            "class_path": "TextDataModule",
            "init_args": {
                "sources": sources,
                "val_share": 0,
                "seq_len": SEQ_LEN,
                "batch_size": ROWS,
                "seed": seed,
                "cache_dir": str(args.folder / "cache"),
            },
        },
        "trainer": {
            "default_root_dir": str(run),
            "max_steps": args.steps,
            "precision": "32-true",
            "accelerator": "cpu",
            "callbacks": callbacks,
        },
    }


@torch.no_grad()
def measure(folder: Path, windows: dict[str, torch.Tensor]) -> Losses:
    """The loss of each window."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {
        name: [float(network(input_ids=row[None], labels=row[None]).loss) for row in rows]
        for name, rows in windows.items()
    }


def train(arm: str, seed: int, run: Path, args: argparse.Namespace) -> None:
    """One run, by the command line; one that was killed goes on."""
    run.mkdir(parents=True, exist_ok=True)
    config = run / "benchmark.yaml"
    config.write_text(yaml.safe_dump(settings_of(arm, seed, run, args)))
    line = [sys.executable, "-m", "llm_lightning", "fit", "--config", str(config)]
    child = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{child.stdout[-2000:]}")


def difference(losses: list[float], before: list[float]) -> str:
    """The mean difference and its 95 % interval."""
    differences = [after - first for after, first in zip(losses, before, strict=True)]
    margin = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.fmean(differences)
    return f"{statistics.fmean(losses):.3f} ({mean:+.3f}, {mean - margin:+.3f} to {mean + margin:+.3f})"


def note(arm: str, seed: int, losses: Losses, args: argparse.Namespace) -> None:
    """Append what a run came to, and of each window what it was."""
    settings: dict[str, Any] = {"seed": seed, "steps": args.steps, "lr": args.lr, "pieces": args.pieces}
    settings |= {"date": time.strftime("%Y-%m-%d"), **machine("cpu")}
    with args.json.open("a") as file:
        for name, values in losses.items():
            row = {"benchmark": "continual", "contender": arm, "model": "135m", "metric": f"{name}_loss"}
            row |= {"value": statistics.fmean(values), "unit": "nats", "settings": settings | {"windows": values}}
            file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M as a folder with safetensors")
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs and results")
    parser.add_argument("--only", nargs="+", default=ARMS, metavar="ARM", help="such as replay-0.3, l2sp-100, ewc-1000")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--pieces", type=int, default=PIECES, help="of old text that EWC looks at")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each domain to measure on")
    parser.add_argument("--new", type=Path, default=ROOT / "../shared/data/quijote/quijote.txt")
    parser.add_argument("--old", type=Path, default=ROOT / "../shared/data/wikitext2/valid.txt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append two objects a run")
    args = parser.parse_args()
    for arm in args.only:
        if not re.fullmatch(r"(replay|l2sp|ewc)-\d+(\.\d+)?", arm):
            parser.error(f"--only: {arm} is no arm; such are replay-0.3, l2sp-100 and ewc-1000")
    args.model, args.folder = args.model.resolve(), args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    windows = prepare(args)
    untrained = args.folder / "before.json"
    if not untrained.exists():
        untrained.write_text(json.dumps(measure(args.model, windows)))
    before: Losses = json.loads(untrained.read_text())
    print("before    ", *(f"  {name} {statistics.fmean(values):.3f}" for name, values in before.items()))
    for seed in args.seeds:
        for arm in args.only:
            run = args.folder / f"{arm}-{seed}"
            kept = run.with_name(run.name + ".json")
            if not kept.exists():
                train(arm, seed, run, args)
                losses = measure(run / "model" / "last", windows)
                kept.write_text(json.dumps(losses))
                if args.json:
                    note(arm, seed, losses, args)
            losses = json.loads(kept.read_text())
            print(
                f"{arm:12}{seed:3}",
                *(f"  {name} {difference(losses[name], before[name])}" for name in losses),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
