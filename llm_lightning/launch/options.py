"""The flags of `llm-lightning slurm`: what the cluster is asked for; all others are the run's own settings."""

import re
import sys
from dataclasses import dataclass, field

from llm_lightning.errors import UserError
from llm_lightning.launch.nodes import Nodes
from llm_lightning.settings.flags import FlagParser

# As sbatch takes it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<rest>\d+(?::\d+){0,2})|(?P<short>\d+(?::\d+){0,2}))")
_OWNED = (
    ("--trainer.num_nodes", "--nodes"),
    ("--trainer.devices", "--gpus-per-node, or --tasks-per-node on CPUs"),
    ("--trainer.accelerator", "--gpus-per-node: with it gpu, without it cpu"),
)


@dataclass
class JobOptions(Nodes):
    """What a job asks the cluster for.

    Attributes:
        cpus_per_task: CPU cores a rank, its loader workers included; what the cluster gives if None.
        time: Limit, as sbatch takes it.
        partition, account, qos, constraint: As the cluster names them.
        job_name: The run folder's name if None.
        setup: Shell lines to run before, such as `module load cuda`.
        sbatch: Further options of sbatch, such as `--exclusive`.
        python: The interpreter that has llm-lightning, on the nodes.
        sweep: KEY=V1,V2,...; one run for each combination, as an array job.
        after: Job ids that must have ended well first.
        stop_before: Seconds before the limit at which the run is told to save and stop.
        max_failures: Attempts in a row that may end without a new checkpoint.
    """

    cpus_per_task: int | None = None
    time: str = ""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    job_name: str | None = None
    setup: list[str] = field(default_factory=list)
    sbatch: list[str] = field(default_factory=list)
    python: str = sys.executable
    sweep: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    stop_before: int = 120
    max_failures: int = 3


def parse_options(args: list[str]) -> tuple[JobOptions, list[str]]:
    """Split a command line into the job's flags, checked, and the run's own arguments, in their order.

    Raises:
        UserError: a flag's value cannot work, or a setting is given that the job's flags decide.
    """
    parser = FlagParser(add_help=False, allow_abbrev=False)
    for name in ("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "stop_before", "max_failures"):
        parser.add_argument(_flag(name), type=int)
    for name in ("time", "partition", "account", "qos", "constraint", "job_name", "python"):
        parser.add_argument(_flag(name))
    for name in ("setup", "sbatch", "sweep"):
        parser.add_argument(_flag(name), action="append")
    parser.add_argument("--after", type=lambda ids: ids.split(","))
    parser.add_argument("--dry-run", action="store_true")
    # `--sbatch --exclusive` reads well, but argparse would take the value for another flag.
    joined = re.sub(r"(^|\0)(--sbatch|--setup)\0", r"\1\2=", "\0".join(args)).split("\0") if args else []
    known, rest = parser.parse_known_args(joined)
    options = JobOptions(**{name: value for name, value in vars(known).items() if value is not None})
    _check(options)
    refuse_owned(rest)
    return options, rest


def refuse_owned(arguments: list[str]) -> None:
    """Raise `UserError` for a run's setting that follows from what the cluster is asked for."""
    for setting, flag in _OWNED:
        if any(argument == setting or argument.startswith(f"{setting}=") for argument in arguments):
            raise UserError(f"{setting} follows from the job's flags: use {flag}.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(options: JobOptions) -> None:
    options.check_numbers(cpus_per_task=1, stop_before=1, max_failures=1)
    if not options.time:
        raise UserError("--time is missing: the limit of one attempt, such as --time 4:00:00.")
    if options.stop_before >= seconds_of(options.time):
        raise UserError(
            f"--stop-before={options.stop_before} seconds leaves nothing of --time={options.time}"
            f"{' (minutes)' if options.time.isdigit() else ''}."
        )
    if options.job_name in ("bash", "interactive"):
        raise UserError(f"--job-name={options.job_name}: Lightning takes a job of this name for a shell. Use another.")
    for name in ("partition", "account", "qos", "constraint", "job_name"):
        value = getattr(options, name)
        if value is not None and (not value or re.search(r"\s", value)):
            raise UserError(f"{_flag(name)}={value!r} must be one word.")
    for job in options.after:
        if not job.isdigit():
            raise UserError(f"--after={','.join(options.after)}: {job!r} is no job id, such as 1234 or 1234,1235.")
    for option in options.sbatch:
        if not re.match(r"--?[a-zA-Z]", option) or "\n" in option:
            raise UserError(f"--sbatch={option!r} is no option of sbatch, such as --sbatch=--exclusive.")
    for option in options.sweep:
        if not re.fullmatch(r"[A-Za-z_][\w.]*=[^=].*", option):
            raise UserError(f"--sweep={option!r} must look like model.optimizer.lr=1e-3,3e-3.")


def seconds_of(time: str) -> int:
    """Seconds of a time limit of sbatch.

    Raises:
        UserError: it is none.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise UserError(f"--time={time!r} is no time of sbatch: minutes, hours:minutes:seconds or days-hours:minutes.")
    if match["days"]:
        hours, minutes, seconds = ([int(part) for part in match["rest"].split(":")] + [0, 0])[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = [int(part) for part in match["short"].split(":")]
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds
