"""`llm-lightning evaluate MODEL --tasks ...`: how good a model is at tasks, and how sure that is."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_lightning.commands.judging import PAIRS, check_asked, prepare_pairs
from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report as report_error
from llm_lightning.settings.flags import FlagParser
from llm_lightning.settings.shipped import tasks as ready_tasks
from llm_lightning_safety.redaction import redact_arguments

USAGE = """\
usage: llm-lightning evaluate MODEL --tasks TASK[,TASK ...] [options]

Asks a model the items of tasks of lm-evaluation-harness, and writes each score with the interval that it lies in, the
share of answers that were cut off or could not be read, and all answers. Where it is stopped, the same command goes on
and asks no item again. Under torchrun or srun the items are split among the processes.

MODEL is a model folder (full, quantized or pruned), an adapter's, a .gguf file or a hub id. A TASK is the name of one
of lm-eval's own tasks (their data come from the hub), a YAML file, or one of the ready tasks, which read your files:
  {ready}
A reward model is asked local_pairs: how often it prefers what people preferred.

options:
  --data TASK=PATH        the file, or the folder with the files, that a ready task reads; may be given again
  --columns NAME=YOURS    what your file calls a column that a ready task reads; may be given again
  --include FOLDER        with YAML files of your own tasks; may be given again
  --contamination PATH    training data, in which the items are looked for; may be given again
  --num_fewshot N         examples before each item
  --limit N               only the first N items of each task, or that share of them below 1
  --chat_template         put items to the model as conversations
  --system_prompt TEXT    stands before each item
  --max_new_tokens N      of an answer, in the place of what the tasks say
  --seq_len N             tokens of context; by default the model's
  --seed N                of answers that are sampled
  --strategy FILE         YAML as for generate: several samples and a choice among them, a budget for thoughts
  --dtype NAME            float32, bfloat16 or float16; by default bfloat16 on a GPU, float32 on a CPU
  --row_tokens N          tokens of one forward pass; no score depends on it
  --num_slots N           answers that are written at the same time; no score depends on it
  --output FOLDER         by default evaluation/ beside MODEL, or in the run's folder
"""


Ask = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
"""From engine and answers to outcome and settings."""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `evaluate`.
        debug: show the traceback of an error.
    """
    if not args or "--help" in args or "-h" in args:
        print(USAGE.format(ready="\n  ".join([*ready_tasks(), PAIRS])), end="")
        return 0
    try:
        given = _parser().parse_args(args)
        _evaluate(given, ["llm-lightning", "evaluate", *redact_arguments(args)])
    except (UserError, OSError) as error:
        return report_error(error, debug)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser("llm-lightning evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tasks", required=True)
    for name in ("--data", "--columns", "--contamination"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--include", type=Path, action="append", default=[])
    for name in ("--num_fewshot", "--max_new_tokens", "--seq_len"):
        parser.add_argument(name, type=int)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--chat_template", action="store_true")
    parser.add_argument("--system_prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--row_tokens", type=int, default=8192)
    parser.add_argument("--num_slots", type=int, default=64)
    parser.add_argument("--output", type=Path)
    return parser


def _evaluate(given: argparse.Namespace, command: list[str]) -> None:
    check_installed()
    for name, least in (("num_fewshot", 0), ("max_new_tokens", 1), ("row_tokens", 1), ("num_slots", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}.")
    from llm_lightning.evaluation.evaluate import Prompting, write_outcome
    from llm_lightning.evaluation.harness import Engine
    from llm_lightning.evaluation.table import table
    from llm_lightning.measuring.answers import Answers, remove_answers
    from llm_lightning.models.backbone import Backbone
    from llm_lightning.models.tasks import REWARD
    from llm_lightning.rollouts.local_engine import LocalEngine

    prompting = Prompting(given.limit, given.chat_template, given.system_prompt)
    prompting.check()
    given.data, given.columns = _named("data", given.data), _named("columns", given.columns)
    names = [name.strip() for name in given.tasks.split(",") if name.strip()]
    is_reward_model = Backbone(path=given.model).trained_for() is REWARD
    check_asked(names, given.model, is_reward_model)
    model = LocalEngine(given.model, dtype=given.dtype, field="MODEL")
    trained_on = _training_texts(given.contamination)
    if is_reward_model:
        ask = prepare_pairs(given, model, trained_on)
    else:
        ask = _prepare_tasks(given, model, names, prompting, trained_on)
    output = given.output or default_output(given.model)
    with _process_group():
        engine = Engine(given.row_tokens, given.num_slots)
        answers = Answers(output, engine.ranks)
        outcome, settings = ask(engine, answers)
        answers.close()
        if engine.ranks.rank == 0:
            write_outcome(
                output,
                outcome,
                model={"path": given.model, "fingerprint": model.model},
                settings=settings,
                command=command,
            )
            remove_answers(output)
            print(table(outcome, settings["cut_prompts"]))
            print(f"Scores, answers and prompts: {output}")
        engine.ranks.wait()


def _prepare_tasks(
    given: argparse.Namespace, model: Any, names: list[str], prompting: Any, trained_on: list[Any]
) -> Ask:
    from llm_lightning.evaluation.evaluate import evaluate
    from llm_lightning.evaluation.harness import HarnessSettings, NetworkLM
    from llm_lightning.evaluation.tasks.loading import load_tasks

    tasks = load_tasks(names, given.include, given.data, given.columns, given.num_fewshot)
    strategy = None
    if given.strategy is not None:
        from llm_lightning.inference.strategy import read_strategy

        strategy = read_strategy(given.strategy)

    def ask(engine: Any, answers: Any) -> tuple[Any, dict[str, Any]]:
        settings = HarnessSettings(given.seq_len, given.seed, given.max_new_tokens, given.system_prompt, strategy)
        lm = NetworkLM(model.network, model.tokenizer, model.model, settings, engine, answers)
        return evaluate(lm, tasks, prompting, trained_on), _settings(given, lm)

    return ask


def _training_texts(paths: list[str]) -> list[Any]:
    """What DataModules read at each path, of which nothing is held in memory."""
    if not paths:
        return []
    from datamodules import DataError
    from datamodules.cache import cache_root
    from datamodules.records.contamination import TrainingTexts
    from datamodules.sources.discover import Source

    found = []
    for path in paths:
        try:
            found.append(TrainingTexts([Source(path)], cache_root(None)))
        except DataError as error:
            raise UserError(f"--contamination {path}: {error}") from error
    return found


def check_installed() -> None:
    """Raise `UserError` where lm-evaluation-harness is missing."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("evaluate needs lm-evaluation-harness: pip install 'llm-lightning[evaluation]'.")


def default_output(model: str) -> Path:
    """Where results lie if nobody says: in the run's folder for RUN/model/NAME, else beside the model."""
    path = Path(model).expanduser()
    if not path.exists():  # of the hub
        return Path("evaluation") / path.name
    path = path.resolve()
    if path.parent.name == "model":
        return path.parent.parent / "evaluation" / path.name
    return path.parent / "evaluation" / path.name


def _named(flag: str, given: list[str]) -> dict[str, str]:
    pairs = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not (name and sign and value):
            raise UserError(f"--{flag} {each}: give NAME=VALUE.")
        pairs[name] = value
    return pairs


def _settings(given: argparse.Namespace, lm: Any) -> dict[str, Any]:
    return {
        "num_fewshot": given.num_fewshot,
        "limit": given.limit,
        "chat_template": given.chat_template,
        "system_prompt": given.system_prompt,
        "seed": given.seed,
        "seq_len": lm.max_length,
        "max_new_tokens": given.max_new_tokens,
        "strategy": None if lm.settings.strategy is None else lm.settings.strategy.as_settings(),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "cut_prompts": lm.num_cut,
    }


@contextmanager
def _process_group() -> Iterator[None]:
    """The processes that torchrun or srun has started are one group, which exchanges answers."""
    environment = group_environment(os.environ)
    if environment is None:
        yield
        return
    from torch import distributed

    os.environ.update(environment)
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def group_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What torch reads of the other processes; None where this one is alone."""
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        return {}
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_NTASKS"],
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
        }
    return None
