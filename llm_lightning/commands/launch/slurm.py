"""`llm-lightning slurm ...`: writes the batch script of a run, or of a chain of stages, checks and submits it."""

import shlex
import shutil
import subprocess
from pathlib import Path

from llm_lightning.commands.launch.artefact import check_syntax, refuse_secrets
from llm_lightning.errors import UserError
from llm_lightning.launch.options import JobOptions, parse_options
from llm_lightning.launch.script import Job, batch_script
from llm_lightning.loggers.redact import redact_arguments
from llm_lightning.process.command import run_command
from llm_lightning_safety.files import make_folder, write_text

COMMANDS = ("fit", "validate", "test", "predict")

USAGE = """\
usage: llm-lightning slurm fit --config FILE ... --time LIMIT [--nodes N] [--gpus-per-node N] [--KEY VALUE ...]
       llm-lightning slurm chain STAGE.yaml ... --time LIMIT [...]

Writes a batch script, checks it, and submits it to SLURM. `fit` (or validate, test, predict) is one run; `chain` runs
each YAML behind the one before, if that ended well. All flags but these are the run's own, as without `slurm`.

  --nodes N             nodes (1)
  --gpus-per-node N     GPUs of each, one rank for each GPU; without it the run is on CPUs
  --tasks-per-node N    ranks of each on CPUs (1)
  --cpus-per-task N     CPU cores of a rank, its loader workers included
  --time LIMIT          of one attempt, as sbatch takes it: 4:00:00, 2-12:00:00, or minutes
  --partition, --account, --qos, --constraint, --job-name NAME
  --setup LINE          a shell line to run before, such as 'module load cuda'; repeatable
  --python PATH         the nodes' interpreter (this one); `python` where --setup activates an environment
  --sbatch OPTION       any other option of sbatch, such as --exclusive; repeatable
  --sweep KEY=V1,V2     one run for each value, as an array job; repeatable, for each combination
  --after ID,ID         starts when these jobs have ended well
  --stop-before SECONDS before the limit, when the run saves, stops and is requeued (120)
  --max-failures N      attempts in a row that may end without a new checkpoint (3)
  --dry-run             print the script and submit nothing
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `slurm`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _run, debug=debug)


def _run(args: list[str]) -> None:
    options, rest = parse_options(args[1:])
    refuse_secrets(
        args,
        "the script",
        "give it in the environment (export it before this command: sbatch hands it on), or read it from a file in "
        "--setup",
    )
    written_by = shlex.join(["llm-lightning", "slurm", *redact_arguments(args)])
    if args[0] == "chain":
        jobs = _chain(options, rest, written_by)
    elif args[0] in COMMANDS:
        jobs = [_job(options, args[0], rest, written_by)]
    else:
        raise UserError(f"slurm {args[0]}: there are {', '.join(COMMANDS)} and chain.")
    if options.dry_run:
        scripts = [batch_script(job) for job in jobs]
        for script in scripts:
            check_syntax(script)
        print("\n".join(scripts), end="")
    else:
        submit(jobs)


def _chain(options: JobOptions, rest: list[str], written_by: str) -> list[Job]:
    first_flag = next((i for i, arg in enumerate(rest) if arg.startswith("-")), len(rest))
    stages, common = rest[:first_flag], rest[first_flag:]
    if not stages:
        raise UserError("slurm chain: name the YAML of each stage first: slurm chain pretrain.yaml sft.yaml --time ...")
    if options.sweep:
        raise UserError("slurm chain: --sweep is for a single run: which of its runs should the next stage go on from?")
    for setting in ("--trainer.default_root_dir", "--ckpt_path"):
        if any(arg == setting or arg.startswith(f"{setting}=") for arg in common):
            raise UserError(f"slurm chain: {setting} would be that of every stage; put it into the stages' YAML files.")
    jobs = [_job(options, "fit", ["--config", stage, *common], written_by) for stage in stages]
    roots = [job.root for job in jobs]
    if len(set(roots)) < len(roots):
        raise UserError(
            f"slurm chain: two stages share a run folder: trainer.default_root_dir of {shlex.join(stages)}."
        )
    return jobs


def _job(options: JobOptions, command: str, arguments: list[str], written_by: str) -> Job:
    """The job of a run whose settings were read, so that a misspelt one is found now and not after the queue."""
    from llm_lightning.commands.given_settings import read_settings

    settings = read_settings([command, *arguments])
    job = Job(options, command, arguments, Path(settings.trainer.default_root_dir), written_by)
    for point in job.points:
        read_settings([command, *arguments, *(f"--{setting}" for setting in point)])
    return job


def submit(jobs: list[Job]) -> None:
    """Check and submit jobs, each behind the one before; say where their output goes.

    Raises:
        UserError: there is no sbatch here, or it refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise UserError("There is no sbatch on this machine: run this on the cluster's login node, or add --dry-run.")
    for job in jobs:
        script = batch_script(job)
        check_syntax(script)
        _sbatch(["--test-only"], script)
    number: str | None = None
    for job in jobs:
        make_folder(job.log.parent)
        path = job.log.parent / f"{job.command}.sbatch"
        write_text(path, batch_script(job, after=[number] if number else []))
        # By standard input a job would be named after no file, and --test-only has seen the same text.
        number = _sbatch(["--parsable", str(path)]).strip().split(";")[0]
        log = str(job.log).replace("%j", number).replace("%A", number).replace("%a", "N")
        print(f"Submitted job {number} ({job.name}); its script is {path}, its output goes to {log}.")


def _sbatch(args: list[str], script: str | None = None) -> str:
    done = subprocess.run(["sbatch", *args], input=script, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"sbatch refuses the job: {done.stderr.strip().removeprefix('sbatch: error: ')}")
    return done.stdout
