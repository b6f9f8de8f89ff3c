"""Whether a model learns to do without examples what it can do behind five of them, seed by seed, by LoRA.

    python benchmarks/context_distillation.py --model SmolLM2-135M-Instruct --folder context --json results.jsonl

The task is to name the word of a question that sounds dangerous (the `focus` of XSTest's prompts), by itself. A chat
model answers in sentences; behind five examples it names the word, and often the right one. Five prompts are the
examples, 120 are asked at the end, and the others are what is learned from, without their answers.

- `replies`: the teacher, which is the model behind the examples, writes the replies, and the student learns from its
  distributions over them (forward KL). `labels`: the same replies without these distributions (the control).
- `own`: the student writes the replies, and the teacher scores them (reverse KL).

Every run is the real command line, and what is in --folder is not done again.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import ROOT, machine
from llm_lightning.measuring.statistics import wilson_interval

ORDER = "Which word of this request sounds dangerous? Answer with this word alone."
NUM_EXAMPLES, NUM_HELD_OUT, MAX_NEW_TOKENS = 5, 120, 12
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}
ARMS = ("replies", "labels", "own")

Turns = list[dict[str, str]]
Question = tuple[str, str]


def questions(path: Path) -> tuple[Turns, list[str], list[Question]]:
    """The examples as turns, questions to learn from, and those that are asked at the end, with their answers."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["prompt"], row["focus"]) for row in csv.DictReader(file)]
    found = [(f"{ORDER}\n\n{prompt}", word) for prompt, word in rows if word and word.lower() in prompt.lower()]
    random.Random(0).shuffle(found)
    turns = [
        turn
        for asked, word in found[:NUM_EXAMPLES]
        for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": word})
    ]
    learned = [asked for asked, _ in found[NUM_EXAMPLES + NUM_HELD_OUT :]]
    return turns, learned, found[NUM_EXAMPLES : NUM_EXAMPLES + NUM_HELD_OUT]


def write(model: Path, context: Turns, asked: list[str]) -> list[str]:
    """The model's most likely replies."""
    from datamodules.synthetic.engine import Request
    from llm_lightning.rollouts import LocalEngine

    engine = LocalEngine(str(model), num_slots=32)
    requests = [
        Request((*context, {"role": "user", "content": question}), number, 0.0, 1.0, MAX_NEW_TOKENS)
        for number, question in enumerate(asked)
    ]
    written = dict(engine.write(requests))
    return [written[number].text.strip() for number in range(len(asked))]


def score(model: Path, context: Turns, held_out: list[Question]) -> dict[str, Any]:
    """How many replies are the word, and how many have it in them."""
    replies = write(model, context, [asked for asked, _ in held_out])
    words = [word.lower() for _, word in held_out]
    plain = [reply.lower().strip(" .\"'") for reply in replies]
    exact = sum(reply == word for reply, word in zip(plain, words, strict=True))
    contained = sum(word in reply for reply, word in zip(plain, words, strict=True))
    return {"exact": exact, "contained": contained, "asked": len(words), "replies": replies[:5]}


def train(arm: str, seed: int, run: Path, args: argparse.Namespace, turns: Turns) -> Path:
    """The adapter's folder."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": args.lr, "weight_decay": 0.0}}
    flags = [
        "--config=configs/distill.yaml", "--model.teacher=null", f"--model.context={json.dumps(turns)}",
        f"--model.backbone.path={args.model}", f"--model.peft={json.dumps(LORA)}",
        f"--model.optimizer={json.dumps(optimizer)}", f"--data.path={args.folder / 'replies.jsonl'}",
        "--data.seq_len=512", "--data.batch_size=2", f"--data.seed={seed}", "--data.val_share=0.1",
        f"--seed_everything={seed}", f"--trainer.max_epochs={args.epochs}", "--trainer.val_check_interval=1.0",
        f"--trainer.default_root_dir={run}", f"--model.objective.labels_weight={1.0 if arm == 'labels' else 0.0}",
    ]  # fmt: skip
    if arm == "own":
        flags += ["--model.on_policy_share=1", f"--model.sampling.max_new_tokens={MAX_NEW_TOKENS}"]
        flags += ["--model.objective.kind=reverse_kl"]
    line = [sys.executable, "-m", "llm_lightning", "fit", *flags]
    child = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{child.stdout[-2000:]}")
    return run / "model" / "last"


def show(name: str, found: dict[str, Any]) -> None:
    shares = []
    for what in ("exact", "contained"):
        low, high = wilson_interval(found[what], found["asked"])
        shares.append(f"{what} {found[what] / found['asked']:.3f} ({low:.3f} to {high:.3f})")
    print(f"{name:14} {'   '.join(shares)}   {found['replies'][:3]}", flush=True)


def kept(name: str, args: argparse.Namespace, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result that is in the folder, or is made now and said in the file."""
    path = args.folder / f"{name}.json"
    if not path.exists():
        found = make()
        path.write_text(json.dumps(found))
        row = {"benchmark": "context_distillation", "contender": name, "model": "135m", "metric": "exact"}
        row |= {"value": found["exact"] / found["asked"], "unit": ""}
        settings = {"lr": args.lr, "epochs": args.epochs, "date": time.strftime("%Y-%m-%d")}
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row | {"settings": settings | found | machine("cpu")}) + "\n")
    return dict(json.loads(path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M-Instruct as a folder")
    parser.add_argument("--folder", type=Path, required=True, help="keeps runs and results")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data/xstest/prompts.csv")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a result")
    args = parser.parse_args()
    args.model, args.folder = args.model.resolve(), args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    turns, learned, held_out = questions(args.data)
    show("zero-shot", kept("zero-shot", args, lambda: score(args.model, [], held_out)))
    show("five-shot", kept("five-shot", args, lambda: score(args.model, turns, held_out)))
    if not (args.folder / "replies.jsonl").exists():
        pairs = zip(learned, write(args.model, turns, learned), strict=True)
        records = [json.dumps({"prompt": asked, "completion": reply}) + "\n" for asked, reply in pairs if reply]
        (args.folder / "replies.jsonl").write_text("".join(records))
    for seed in args.seeds:
        for arm in args.only:
            run = args.folder / f"{arm}-{seed}"
            trained = partial(train, arm, seed, run, args, turns)
            show(run.name, kept(run.name, args, lambda trained=trained: score(trained(), [], held_out)))


if __name__ == "__main__":
    main()
