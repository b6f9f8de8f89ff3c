"""`llm-lightning ray ...`: runs the ranks of a run as workers of Ray Train."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llm_lightning.commands.launch.artefact import refuse_secrets
from llm_lightning.commands.launch.slurm import COMMANDS
from llm_lightning.errors import UserError
from llm_lightning.launch.options import refuse_owned
from llm_lightning.launch.ray.options import WorkerOptions
from llm_lightning.launch.script import lines_of
from llm_lightning.process.command import run_command
from llm_lightning.settings.flags import FlagParser

if TYPE_CHECKING:
    from llm_lightning.launch.ray.worker import Work

USAGE = """\
usage: llm-lightning ray fit --config FILE ... [--nodes N] [--gpus-per-node N] [--KEY VALUE ...]

Runs the ranks as workers of Ray Train, in the cluster that RAY_ADDRESS names, in one that runs on this machine, or in
one that is started for this run. `fit` (or validate, test, predict) is one run. All flags but these are the run's own,
as without `ray`. As a job: ray job submit --working-dir . -- llm-lightning ray fit ...

  --nodes N             nodes (1)
  --gpus-per-node N     GPUs of each, one worker for each GPU; without it the run is on CPUs
  --tasks-per-node N    workers of each on CPUs (1)
  --cpus-per-task N     CPU cores of a worker, its loader workers included (1)
  --max-restarts N      attempts after failures (3); pre-empted ones do not count, and mistakes (exit code 2) end it
  --dry-run             print what Ray would be asked for and start nothing
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2, a run that failed is 1.

    Args:
        args: what follows `ray`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _run, debug=debug)


def _run(args: list[str]) -> int:
    from llm_lightning.commands.given_settings import read_settings

    if args[0] not in COMMANDS:
        raise UserError(f"ray {args[0]}: there are {', '.join(COMMANDS)}.")
    options, rest = parse_options(args[1:])
    refuse_secrets(args, "the workers' command lines", "export it before `ray start`, or by --runtime-env of the job")
    root = str(read_settings([args[0], *rest]).trainer.default_root_dir)
    given: Work = {
        "arguments": options.arguments(args[0], lines_of(rest), root),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("LLM_LIGHTNING")},
        "folder": str(Path.cwd()),
        "root": root,
        "ranks_per_node": options.ranks_per_node,
    }
    if options.dry_run:
        plan = {"scaling": options.scaling(), "max_failures": options.max_restarts, "command": given["arguments"]}
        print(yaml.safe_dump(plan, sort_keys=False, width=120), end="")
        return 0
    return _fit(options, given)


def _fit(options: WorkerOptions, given: "Work") -> int:
    if importlib.util.find_spec("ray") is None:
        raise UserError("`llm-lightning ray` needs Ray: pip install 'llm-lightning[ray]'")
    from ray.train import TrainingFailedError

    from llm_lightning.launch.ray.driver import fit

    try:
        fit(options, given)
    except TrainingFailedError as error:
        print(
            f"Ray gave up after {options.max_restarts} restarts; the same command goes on from the newest checkpoint."
        )
        print(str(error).strip().splitlines()[-1])
        return 1
    return 0


def parse_options(args: list[str]) -> tuple[WorkerOptions, list[str]]:
    """Split a command line into the workers' flags, checked, and the run's own arguments, in their order.

    Raises:
        UserError: a flag's value cannot work, or a setting is given that the flags decide.
    """
    parser = FlagParser(add_help=False, allow_abbrev=False)
    for name in ("nodes", "gpus-per-node", "tasks-per-node", "cpus-per-task", "max-restarts"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dry-run", action="store_true")
    known, rest = parser.parse_known_args(args)
    options = WorkerOptions(**{name: value for name, value in vars(known).items() if value is not None})
    options.check()
    refuse_owned(rest)
    return options, rest
