"""The batch script of a job: what a person would write, with what costs a night to find out in its comments."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from llm_lightning.launch.options import JobOptions


@dataclass
class Job:
    """One batch script.

    Attributes:
        options: What the cluster is asked for.
        command: `fit`, `validate`, `test` or `predict`.
        arguments: The run's own.
        root: The run folder; of a sweep, the folder of the run folders.
        written_by: The command line that asked for it.
    """

    options: JobOptions
    command: str
    arguments: list[str]
    root: Path
    written_by: str

    @property
    def name(self) -> str:
        """Of the job, as `squeue` shows it."""
        return self.options.job_name or re.sub(r"[^\w.-]+", "-", self.root.name) or self.command

    @property
    def log(self) -> Path:
        """Where its output goes, in SLURM's notation."""
        return self.root / "slurm" / ("%A_%a.log" if self.options.sweep else "%j.log")

    @property
    def points(self) -> list[list[str]]:
        """A sweep's settings, `KEY=VALUE`, for each of its runs."""
        axes = [
            [f"{key}={value}" for value in values.split(",")]
            for key, values in (axis.split("=", 1) for axis in self.options.sweep)
        ]
        return [list(point) for point in itertools.product(*axes)] if axes else []


def batch_script(job: Job, after: list[str] | None = None) -> str:
    """The script's text.

    Args:
        job: What to run.
        after: Ids of jobs that must have ended well first, beside those of its options.
    """
    parts = [_header(job, [*job.options.after, *(after or [])]), _settings(job), _environment(job), _ATTEMPT]
    return "\n".join([*parts, _srun(job), _OUTCOME])


def _header(job: Job, after: list[str]) -> str:
    options = job.options
    points = job.points
    directives: list[tuple[str, str]] = [
        (f"--job-name={job.name}", ""),
        (f"--nodes={options.nodes}", ""),
        (f"--ntasks-per-node={options.ranks_per_node}", "one for each GPU" if options.gpus_per_node else ""),
    ]
    if options.gpus_per_node:
        # Not --gpus-per-task: each task must see all GPUs of its node, of which it takes the one of its local rank.
        directives.append((f"--gpus-per-node={options.gpus_per_node}", "a task sees all of its node's, and takes one"))
    if options.cpus_per_task:
        directives.append((f"--cpus-per-task={options.cpus_per_task}", ""))
    directives.append((f"--time={options.time}", "of one attempt"))
    directives += [
        (f"--{name}={value}", "")
        for name in ("partition", "account", "qos", "constraint")
        if (value := getattr(options, name))
    ]
    if points:
        directives.append((f"--array=0-{len(points) - 1}", "one task for each line of `sweep` below"))
    if after:
        directives.append((f"--dependency=afterok:{':'.join(after)}", ""))
        directives.append(("--kill-on-invalid-dep=yes", "or it would wait for ever behind a stage that failed"))
    directives += [
        (f"--signal=SIGUSR1@{options.stop_before}", "seconds before the limit the tasks are told to save and stop"),
        ("--requeue", "SLURM starts it again after pre-emption and the loss of a node"),
        ("--open-mode=append", "or a new attempt would truncate the log"),
        (f"--output={job.log}", ""),
    ]
    directives += [(option, "") for option in options.sbatch]
    width = max(len(text) for text, _ in directives if len(text) < 40) + 2
    lines = [f"#SBATCH {text:<{width}}# {why}" if why else f"#SBATCH {text}" for text, why in directives]
    return "\n".join(["#!/bin/bash", f"# Written by: {_one_line(job.written_by)}", *lines, ""])


def _settings(job: Job) -> str:
    lines = []
    if points := job.points:
        lines += [
            "# The runs of the sweep: settings over those of the command below.",
            "sweep=(",
            *(f"    {shlex.quote(shlex.join(f'--{setting}' for setting in point))}" for point in points),
            ")",
            'eval "settings=(${sweep[SLURM_ARRAY_TASK_ID]})"',
            f"run={shlex.quote(str(job.root))}/$SLURM_ARRAY_TASK_ID",
            # Of a whole array, the job number would requeue all tasks.
            "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
        ]
    else:
        lines += [f"run={shlex.quote(str(job.root))}", "job=$SLURM_JOB_ID"]
    lines.append(f"max_failures={job.options.max_failures}  # attempts in a row without a new checkpoint")
    return "\n".join([*lines, ""])


def _environment(job: Job) -> str:
    lines = [*job.options.setup]
    if job.options.setup:
        lines.append("")
    lines += [
        "# Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch by itself.",
        "[[ -z $SLURM_CPUS_PER_TASK ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        "",
        f"export LLM_LIGHTNING_STOP_BEFORE={job.options.stop_before}  # the run looks at the clock too",
        "",
        "# Where the ranks meet, on this first node: a port by the job's number, or the next one that is free.",
        "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
        "while (: </dev/tcp/127.0.0.1/$MASTER_PORT) 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done",
        "export MASTER_PORT",
        "",
    ]
    return "\n".join(lines)


_ATTEMPT = r"""
newest_step() {
    local folder steps total=0
    for folder in "$run/checkpoints" "$run"/round-*/checkpoints; do # of several rounds, the steps of all
        steps=$(ls "$folder" 2>/dev/null | sed -n 's/^step=\([0-9]*\)\.ckpt$/\1/p')
        total=$((total + $(sort -n <<<"${steps:-0}" | tail -n 1)))
    done
    echo "$total"
}
failures=$run/slurm/failures-$job
mkdir -p "$run/slurm"
before=$(newest_step)
echo "$(date '+%F %T') attempt $((${SLURM_RESTART_COUNT:-0} + 1)) of job $job on $SLURM_JOB_NODELIST, from step $before"

# A lost rank ends the step at once instead of leaving the others to wait for it.
""".lstrip("\n").rstrip("\n")


def _srun(job: Job) -> str:
    options = job.options
    ours = [
        f"--trainer.accelerator={'gpu' if options.gpus_per_node else 'cpu'}",
        f"--trainer.devices={options.ranks_per_node}",
        f"--trainer.num_nodes={options.nodes}",
    ]
    theirs = [word for word in lines_of(job.arguments) if not word.startswith("--trainer.default_root_dir=")]
    words = [shlex.quote(word) for word in [*theirs, *ours]]
    words += ['"${settings[@]}"'] if options.sweep else []
    words.append('--trainer.default_root_dir="$run"')
    start = f"srun --kill-on-bad-exit=1 {shlex.quote(options.python)} -m llm_lightning {job.command}"
    return " \\\n    ".join([start, *words])


def lines_of(arguments: list[str]) -> list[str]:
    """Arguments with `--KEY VALUE` as one `--KEY=VALUE`, so that each has a line of its own."""
    joined: list[str] = []
    for argument in arguments:
        if joined and not argument.startswith("--") and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


_OUTCOME = r"""
code=$?

if ((code == 0)); then
    rm -f "$failures"
    echo "$(date '+%F %T') finished"
    exit 0
elif ((code == 2)); then
    echo "$(date '+%F %T') a mistake that another attempt would not mend; see above"
    exit 2
fi
# Stopped by a signal or failed: again, unless nothing was won for too many times in a row.
failed=0
if (($(newest_step) <= before)); then
    failed=$(($(cat "$failures" 2>/dev/null || echo 0) + 1))
fi
echo "$failed" >"$failures"
if ((failed >= max_failures)); then
    echo "$(date '+%F %T') giving up: $failed attempts in a row ended without a new checkpoint (exit code $code)"
    rm -f "$failures"
    exit "$code"
fi
echo "$(date '+%F %T') ended with exit code $code at step $(newest_step); requeued"
scontrol requeue "$job" || echo "requeue was refused: submit the same command again to go on"
exit "$code"
""".lstrip("\n")


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
