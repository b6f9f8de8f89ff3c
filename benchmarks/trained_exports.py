"""Every export of what training leaves behind: an adapter, a pruned network and a reward model.

    python benchmarks/trained_exports.py MODEL FOLDER [--to TARGET[:FORMAT] ...]

A few steps each on the data that come with the package: fine-tuning by LoRA, structured pruning of channels, and a
reward model. The proof does not ask whether they are good, but whether an export is the model. Each is
exported to all targets that hold it and whose environment is there (`llm-lightning export --make`). The exit code is 1
where an export that should be there is refused.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from llm_lightning.errors import UserError
from llm_lightning.export import TARGETS, Wanted
from llm_lightning.export.source import read_source

EXACT = ("merged:float32", "gguf:f32", "onnx-genai:fp32", "onnx-optimum:fp32", "triton:float32")
PRUNING = "[{class_path: Pruning, init_args: {structure: {class_path: Structured, init_args: %s}, %s}}]"
SHAPE = "{channels: 0.25}"
ONE_SHOT = "criterion: Wanda, schedule: {class_path: OneShot, init_args: {end: 4}}"


def fits() -> dict[str, list[str]]:
    """By the name of what is left behind the words of its `fit`."""
    return {
        "lora": [
            "--config=sft", "--config=peft/lora", "--data.path=python_pairs", "--model.optimizer.init_args.lr=0.01",
        ],
        "pruned": [
            "--config=prune", "--data.path=python_docs",
            f"--trainer.callbacks={PRUNING % (SHAPE, ONE_SHOT)}",
        ],
        "reward": ["--config=reward", "--data.path=python_preferences"],
    }  # fmt: skip


def fit(model: str, folder: Path, steps: int, seq_len: int) -> dict[str, Path]:
    """Folders of the models, those that were there already kept."""
    found = {"as it was": Path(model)}
    for name, words in fits().items():
        run = folder / name
        found[name] = run / "model" / "last"
        if found[name].is_dir():
            continue
        settings = {
            "model.backbone.path": model,
            "trainer.default_root_dir": run,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.limit_val_batches": 2,
            "data.batch_size": 2,
            "data.seq_len": seq_len,
        }
        words += [f"--{name}={value}" for name, value in settings.items()]
        subprocess.run([sys.executable, "-m", "llm_lightning", "fit", *words], check=True)
    return found


def held(model: Path, words: Sequence[str]) -> list[str]:
    """Those of the exports that can hold a model, and whose environment is there; what is left out is said."""
    source, found = read_source(model), []
    for word in words:
        wanted = Wanted.parse(word)
        target = TARGETS[wanted.target]
        try:
            target.check(source, wanted.form or target.default(source))
            target.python()
        except UserError as error:
            print(f"{word} is left out: {error}")
            continue
        found.append(word)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a network")
    parser.add_argument("folder", type=Path, help="gets the runs and the exports")
    parser.add_argument("--to", nargs="+", default=list(EXACT), help=f"default: {' '.join(EXACT)}")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seq_len", type=int, default=256)
    args = parser.parse_args(argv)
    codes = []
    for name, model in fit(args.model, args.folder, args.steps, args.seq_len).items():
        print(f"\n{name}: {model}", flush=True)
        output = args.folder / name.replace(" ", "-") / "exports"
        command = [sys.executable, "-m", "llm_lightning", "export", str(model), "--output", str(output), "--to"]
        codes.append(subprocess.run([*command, *held(model, args.to)]).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
