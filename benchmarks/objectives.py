"""Fill-in-the-middle beside plain pretraining: what it teaches, what it costs, and what it does to the data.

    python benchmarks/objectives.py --folder objectives learning
    python benchmarks/objectives.py --folder objectives cost

The text is the source code of Python's own library, a module a document; 0.05 of them validate.

`learning`: the 9M shape at each rate of `data.fim.rate`, by the real command line, with each seed. Told are the loss
from left to right on the held-out modules, and how many of --items lines of these are filled in exactly: one line of
code is taken out, the network is given 256 tokens before it and 128 behind it, and writes up to the end of a text or of
the line. A network that was trained at rate 0 is given what stands before alone. What is in --folder is not done again.

`cost`: reading rows plain, rearranged, and with hidden tokens; CPU-seconds of one process.
"""

import argparse
import csv
import json
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.preference_learning import llm_lightning
from benchmarks.workload import SHAPES

VOCAB, SEQ_LEN = 8192, 512
TOKENS_BEFORE, TOKENS_BEHIND, MOST_NEW = 256, 128, 48
VAL_SHARE = 0.05
CONFIG = SHAPES["9m", "cpu"].config


def write_corpus(path: Path) -> None:
    """The modules of the library, one a line, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if not {"test", "tests", "site-packages"} & set(file.parts)]
    with path.open("w") as out:
        for file in files:
            text = file.read_text(errors="replace")
            if text.strip():
                out.write(json.dumps({"text": text}) + "\n")


def data_module(args: argparse.Namespace, **settings: Any) -> Any:
    from datamodules import TextDataModule

    data = TextDataModule(
        str(args.folder / "library.jsonl"), vocab_size=VOCAB, seq_len=SEQ_LEN, val_share=VAL_SHARE, **settings
    )
    data.prepare_data()
    data.setup("fit")
    return data


def trained(args: argparse.Namespace, rate: float, seed: int) -> Path:
    """The folder of a run, which is made where that was not done."""
    run = args.folder / f"fim-{rate:g}-{seed}"
    if not (run / "model" / "last" / "model.safetensors").exists():
        backbone = {"config": {"class_path": "transformers.LlamaConfig", "init_args": CONFIG | {"vocab_size": 8256}}}
        llm_lightning(
            "fit", "--model=CausalPretraining", f"--model.backbone={json.dumps(backbone)}",
            f"--model.optimizer.lr={args.lr:g}", "--model.schedule.warmup=0.05", "--data=TextDataModule",
            f"--data.path={args.folder / 'library.jsonl'}", f"--data.vocab_size={VOCAB}", f"--data.seq_len={SEQ_LEN}",
            f"--data.batch_size={args.batch_size}", f"--data.val_share={VAL_SHARE}", f"--data.fim.rate={rate}",
            f"--seed_everything={seed}", f"--data.seed={seed}", f"--trainer.max_steps={args.steps}",
            f"--trainer.val_check_interval={args.steps}", "--trainer.precision=32-true",
            f"--trainer.default_root_dir={run}",
        )  # fmt: skip
    return run


def held_out_lines(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Prefix, line and suffix, of lines of code that are no copy of another line of their module."""
    from datamodules.serving.dataset import Documents

    data = data_module(args)
    documents = Documents(data._val)
    rng = random.Random(0)
    for number in rng.choices(range(len(documents)), k=20 * args.items):
        lines = data.tokenizer.decode(documents[number].ids, skip_special_tokens=True).splitlines(keepends=True)
        place = rng.randrange(len(lines))
        code = lines[place].strip()
        if len(code) > 8 and not code.startswith(("#", '"')) and lines.count(lines[place]) == 1:
            indent = len(lines[place]) - len(lines[place].lstrip())
            prefix = "".join(lines[:place]) + lines[place][:indent]
            yield prefix, lines[place][indent:].rstrip("\n"), "\n" + "".join(lines[place + 1 :])


def filled_in(run: Path, items: list[tuple[str, str, str]], rate: float) -> int:
    """How many lines a network writes as they were, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "model" / "last")
    network = AutoModelForCausalLM.from_pretrained(run / "model" / "last")
    right = 0
    for prefix, line, suffix in items:
        before, behind = (tokenizer(text, add_special_tokens=False).input_ids for text in (prefix, suffix))
        before, behind = before[-TOKENS_BEFORE:], behind[:TOKENS_BEHIND]
        if rate:
            markers = tokenizer.convert_tokens_to_ids(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
            before = [markers[0], *before, markers[1], *behind, markers[2]]
        with torch.no_grad():
            ids = network.generate(
                torch.tensor([before]), do_sample=False, max_new_tokens=MOST_NEW, stop_strings=["\n"],
                tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id,
            )[0, len(before) :]  # fmt: skip
        right += tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0] == line
    return right


def learning(args: argparse.Namespace) -> None:
    """Train at each rate and seed, and ask."""
    items = [item for item, _ in zip(held_out_lines(args), range(args.items), strict=False)]
    for rate in args.rates:
        for seed in args.seeds:
            run = trained(args, rate, seed)
            with (run / "metrics.csv").open() as file:
                loss = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")][-1]
            right = filled_in(run, items, rate)
            print(f"rate {rate:g}, seed {seed}: loss {loss:.4f}; {right} of {len(items)} lines filled in", flush=True)


def cost(args: argparse.Namespace) -> None:
    """Read as many rows each way, in turns."""
    from datamodules.transformations.infilling import FillInTheMiddle
    from datamodules.transformations.masking import Masking
    from datamodules.transformations.spans import SpanCorruption

    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "fim 0.5": {"fim": FillInTheMiddle()},
        "masking": {"masking": Masking()},
        "spans": {"spans": SpanCorruption()},
    }
    seconds = dict.fromkeys(ways, 0.0)
    modules = {name: data_module(args, **settings) for name, settings in ways.items()}
    loaders = {name: module.train_dataloader() for name, module in modules.items()}
    batches = {name: iter(loader) for name, loader in loaders.items()}
    rearranged = pieces = 0
    sides = dict.fromkeys(("input_documents", "label_documents"), (0, 0))
    for _ in range(args.batches):
        for name, each in batches.items():
            start = time.process_time()
            batch = next(each)
            seconds[name] += time.process_time() - start
            if name == "fim 0.5":
                tokenizer = modules[name].tokenizer
                rearranged += int((batch["input_ids"] == tokenizer.convert_tokens_to_ids("<|fim_middle|>")).sum())
                pieces += int(((batch["position_ids"] == 0) & (batch["input_ids"] != tokenizer.pad_token_id)).sum())
            if name == "spans":
                for side, (free, places) in sides.items():
                    sides[side] = free + int((batch[side] < 0).sum()), places + batch[side].numel()
    num_tokens = args.batches * 8 * SEQ_LEN
    for side, (free, places) in sides.items():
        print(f"spans, {side}: {places:,} places, {free / places:.1%} padding", flush=True)
    for name, module in modules.items():
        counts = module.statistics["train"]
        print(
            f"{name:8} {num_tokens / seconds[name]:12,.0f} tokens a CPU-second; {counts['num_rows']:,.0f} rows,"
            f" {counts['padded_share']:.2%} free before markers",
            flush=True,
        )
    print(f"rearranged: {rearranged:,} of {pieces:,} pieces, {rearranged / pieces:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {task.__name__: task for task in (learning, cost)}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the corpus and the runs")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=8, help="rows of 512 tokens a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--items", type=int, default=400, help="lines to fill in")
    parser.add_argument("--batches", type=int, default=200, help="of 8 rows, for `cost`")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "library.jsonl").exists():
        write_corpus(args.folder / "library.jsonl")
    tasks[args.task](args)


if __name__ == "__main__":
    main()
