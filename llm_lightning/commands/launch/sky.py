"""`llm-lightning sky ...`: writes the YAML of a run as a managed job of SkyPilot, checks and submits it."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from llm_lightning.commands.launch.artefact import check_syntax, given_files, refuse_secrets, rendered
from llm_lightning.commands.launch.slurm import COMMANDS
from llm_lightning.errors import UserError
from llm_lightning.launch.jobset import name_of
from llm_lightning.launch.options import refuse_owned
from llm_lightning.launch.skypilot import SETTINGS, MachineOptions, managed_job
from llm_lightning.process.command import run_command
from llm_lightning.settings.flags import FlagParser

USAGE = """\
usage: llm-lightning sky fit --config FILE ... --bucket SOURCE:PATH --trainer.default_root_dir PATH/RUN
                             [--nodes N] [--gpus-per-node N --gpu NAME] [--KEY VALUE ...]

Writes the YAML of a managed job of SkyPilot, checks it, and hands it to `sky jobs launch`. `fit` (or validate, test,
predict) is one run. All flags but these are the run's own, as without `sky`. Configurations that are files here go
along.

  --image IMAGE         of the machines, such as docker:IMAGE, whose `python` has llm-lightning
  --setup LINE          a shell line to run before, such as 'pip install llm-lightning'; repeatable
  --nodes N             machines (1)
  --gpus-per-node N     GPUs of each, one rank for each GPU; without it the run is on CPUs
  --gpu NAME            their name, such as H100
  --tasks-per-node N    ranks of each on CPUs (1)
  --cpus, --memory N    of each machine, such as 8+ and 64+ (GiB)
  --infra WHERE         such as aws, gcp/us-central1 or k8s; by itself SkyPilot takes the cheapest
  --spot                machines that may be taken away
  --bucket SOURCE:PATH  such as s3://my-runs:/runs: a bucket and where it is mounted, for the run folder; repeatable
  --volume NAME:PATH    a volume of SkyPilot's, for checkpoints that several nodes write; repeatable
  --env NAME            an environment variable to hand on from here, such as WANDB_API_KEY; repeatable
  --name NAME           of the job (the run folder's name)
  --stop-before SECONDS that ranks have to save when they are told to go (120)
  --max-restarts N      attempts after failures (3); pre-empted ones do not count
  --dry-run             print the YAML and submit nothing
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `sky`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _run, debug=debug)


def _run(args: list[str]) -> None:
    from llm_lightning.commands.given_settings import read_settings

    if args[0] not in COMMANDS:
        raise UserError(f"sky {args[0]}: there are {', '.join(COMMANDS)}.")
    options, rest = parse_options(args[1:])
    way_out = "export it, and name the variable by --env"
    refuse_secrets(args, "the YAML", way_out)
    root = str(read_settings([args[0], *rest]).trainer.default_root_dir)
    options.check_root(root)
    arguments, files = given_files(rest, SETTINGS, "the YAML", way_out)
    task = managed_job(
        options, options.name or name_of(Path(root).name), options.arguments(args[0], arguments, root), files
    )
    check_syntax(f"{task.get('setup', '')}\n{task['run']}")
    text = rendered([task])
    if options.dry_run:
        print(text, end="")
        return
    _launch(options, text)


def _launch(options: MachineOptions, text: str) -> None:
    if shutil.which("sky") is None:
        raise UserError("There is no sky on this machine: pip install skypilot, or add --dry-run.")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        secrets = [word for name in options.variables for word in ("--secret", name)]
        done = subprocess.run(["sky", "jobs", "launch", "--yes", "--detach-run", *secrets, file.name])
    if done.returncode:
        raise UserError("sky refuses the job; its message is above.")


def parse_options(args: list[str]) -> tuple[MachineOptions, list[str]]:
    """Split a command line into the job's flags, checked, and the run's own arguments, in their order.

    Raises:
        UserError: a flag's value cannot work, or a setting is given that the flags decide.
    """
    parser = FlagParser(add_help=False, allow_abbrev=False)
    for name in ("nodes", "gpus-per-node", "tasks-per-node", "stop-before", "max-restarts"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("gpu", "cpus", "memory", "infra", "image", "name"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--setup", action="append")
    for name, place in (("bucket", "buckets"), ("volume", "volumes"), ("env", "variables")):
        parser.add_argument(f"--{name}", action="append", dest=place)
    for name in ("spot", "dry-run"):
        parser.add_argument(f"--{name}", action="store_true")
    known, rest = parser.parse_known_args(args)
    options = MachineOptions(**{name: value for name, value in vars(known).items() if value is not None})
    options.check()
    refuse_owned(rest)
    return options, rest
