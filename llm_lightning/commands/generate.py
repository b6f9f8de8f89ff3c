"""`llm-lightning generate`: let a model answer prompts, several times each, and choose."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from datamodules import DataError, OpenAIEngine  # noqa: F401 (jsonargparse finds an imported class by its short name)
from datamodules.cache import cache_root
from datamodules.synthetic.engine import Engine
from datamodules.synthetic.generation import process_number
from datamodules.synthetic.seeds import Seeds, prompt_seeds, solved_seeds
from llm_lightning.errors import UserError
from llm_lightning.inference.adaptive_engine import AdaptiveEngine
from llm_lightning.inference.choices import Choice, FirstSample
from llm_lightning.inference.examples import ChosenExamples, Examples
from llm_lightning.inference.judging import Judging
from llm_lightning.inference.pool import Asking, Pool
from llm_lightning.messages import readable
from llm_lightning.process.redacted_output import report
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import (
    DraftModel,  # noqa: F401 (as OpenAIEngine)
    LocalEngine,
    PromptLookup,  # noqa: F401
    Speculation,
)
from llm_lightning.rollouts.adaptation import Adaptation
from llm_lightning.rollouts.thinking import Thinking
from llm_lightning.settings.environment import with_environment
from llm_lightning.settings.shipped import with_found_configs
from llm_lightning_safety.files import write_text
from llm_lightning_safety.redaction import remember

USAGE = """\
usage: llm-lightning generate --model MODEL --prompts FILE [--config FILE ...] [--KEY VALUE ...]

Lets a model answer prompts, several times each, and takes one of the answers. answers.jsonl has a conversation for each
prompt, which can be learned from, with all samples and their rewards. Stopped, even by kill -9, the same command goes
on and pays for no answer twice; so it is with other rewards, other choices and more samples. Started by srun or
torchrun, or several times on one --output, processes share the prompts.

Where a reward says what is right (--truth), the share of right answers is shown over the number of samples, for each
choice, with its interval: in curve.json, in curve.png and on the screen.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `generate`.
        debug: show the traceback of an error.
    """
    if not args:
        print(USAGE, end="")
        return 0
    try:
        words = with_found_configs(with_environment(["generate", *args], os.environ))[1:]
        parser = _parser()
        config = parser.parse_args(words)
        remember(config.as_dict())
        return generate(parser.instantiate_classes(config))
    except SystemExit as stop:  # --help and --print_config
        return int(stop.code or 0)
    except (UserError, DataError, ArgumentError, OSError) as error:
        return report(error, debug)
    except ValueError as error:
        return report(UserError(readable(error)), debug)
    except KeyboardInterrupt:
        return 130


def _parser() -> ArgumentParser:
    usage, _, description = USAGE.partition("\n\n")
    parser = ArgumentParser(
        "llm-lightning generate",
        usage=usage.removeprefix("usage: "),
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML, by path or by name.")
    parser.add_argument("--model", type=str | None, help="Folder, .gguf file or hub id of the model that answers.")
    parser.add_argument("--engine", type=Engine | None, help="What answers instead: OpenAIEngine, for an endpoint.")
    parser.add_argument(
        "--speculative",
        type=Speculation | None,
        help="Drafts for the --model: PromptLookup, or DraftModel with a path.",
    )
    parser.add_argument("--prompts", type=str, required=True, help="As data.path of a PromptDataModule.")
    parser.add_class_arguments(Asking)
    parser.add_argument("--examples", type=Examples | None, help="Solved examples before each prompt.")
    parser.add_argument("--thinking", type=Thinking | None, help="A budget for the thoughts before an answer.")
    parser.add_argument("--stop_at", type=str | None, help="Regular expression; an answer in which it finds is over.")
    parser.add_argument("--adaptation", type=Adaptation | None, help="Learn from each prompt before it is answered.")
    parser.add_argument("--rewards", type=dict[str, Reward], default={}, help="By name, as model.rewards of PPO.")
    parser.add_argument(
        "--choices", type=dict[str, Choice], default={"first": FirstSample()}, help="By name; the first one counts."
    )
    parser.add_argument("--truth", type=str | None, help="The reward that is above 0.5 for a right answer.")
    parser.add_argument("--output", type=Path, default=Path("runs/generate"), help="Folder of answers and calls.")
    return parser


def generate(given: Any) -> int:
    """Write the answers; exit code 1 where calls were given up.

    Args:
        given: the settings, as objects.

    Raises:
        UserError: they cannot work.
        DataError: the prompts cannot be read, or the engine cannot go on.
    """
    rewards, engine = _rewards(given), _engine(given)
    judging = Judging(rewards, given.choices)
    judging.check()
    asking = Asking(**{name: getattr(given, name) for name in Asking.__dataclass_fields__})
    asking.check()
    engine.check()
    prompts = _read("--prompts", prompt_seeds, given.prompts, given.output / "prompts")
    examples = None
    if given.examples is not None:
        given.examples.check()
        solved = _read("--examples.path", solved_seeds, given.examples.path, given.output / "examples")
        examples = ChosenExamples(given.examples, list(solved), asking.seed)
    pool = Pool(prompts, engine, asking, judging, given.output, examples)
    pool.check()
    rank, num_ranks = process_number()
    try:
        pool.run(rank, num_ranks)
    finally:
        engine.release()
    return _finish(pool, given, rewards) if rank == 0 else 0


def _read(flag: str, reader: Callable[[str, Path, Path], Seeds], path: str, folder: Path) -> Seeds:
    try:
        return reader(path, folder, cache_root(None))
    except DataError as error:
        raise UserError(f"{flag} {path}: {error}") from error


def _engine(given: Any) -> Engine[Any]:
    if (given.model is None) == (given.engine is None):
        raise UserError("generate needs one that answers: give --model MODEL, or --engine.")
    if given.engine is None:
        options = {
            "field": "--model",
            "thinking": given.thinking,
            "stop_at": given.stop_at,
            "speculative": given.speculative,
        }
        if given.adaptation is None:
            return LocalEngine(given.model, **options)
        return AdaptiveEngine(given.model, given.adaptation, **options)
    name = type(given.engine).__name__
    if given.thinking is not None:
        raise UserError(
            f"--thinking counts token ids, which an engine ({name}) does not show: give the model's folder by --model, "
            "or leave it out and let the engine's server keep the budget."
        )
    if given.stop_at is not None:
        raise UserError(f"--stop_at: an engine ({name}) ends its texts by itself: give a folder by --model.")
    if given.adaptation is not None:
        raise UserError(f"--adaptation changes weights, which an engine ({name}) keeps: give a folder by --model.")
    if given.speculative is not None:
        raise UserError(
            f"--speculative goes with --model: an engine ({name}) has drafts by settings of its own, if at all."
        )
    return given.engine


def _rewards(given: Any) -> dict[str, Reward]:
    """The rewards; the one that is the truth only looks on."""
    rewards = dict(given.rewards)
    if given.truth is not None:
        if given.truth not in rewards:
            raise UserError(f"--truth {given.truth}: --rewards has {', '.join(rewards) or 'none'}; name one of them.")
        rewards[given.truth].weight = 0.0
    return rewards


def _finish(pool: Pool, given: Any, rewards: dict[str, Reward]) -> int:
    answers = given.output / "answers.jsonl"
    pool.write(answers)
    print(f"Answers: {answers}")
    if given.truth is not None:
        from llm_lightning.inference.curve import curve_of

        weights = {name: reward.weight for name, reward in rewards.items()}
        if (curve := curve_of(pool.rows(), given.truth, given.choices, weights, pool.cost())) is not None:
            write_text(given.output / "curve.json", json.dumps(curve.as_json(), indent=1) + "\n")
            curve.draw(given.output / "curve.png")
            print(f"Right of {curve.num_prompts:,} prompts, with 95 % intervals:\n{curve.table()}")
    if count := pool.num_given_up():
        print(f"Calls were given up in {count} blocks of prompts: the same command makes these calls again.")
    return 1 if count else 0
