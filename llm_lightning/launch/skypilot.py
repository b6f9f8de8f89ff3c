"""The YAML of a run as a managed job of SkyPilot, whose nodes are the nodes of torchrun."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.launch.nodes import Nodes

PORT = 29500
SETTINGS = "/tmp/llm-lightning"
STOPPED = 143
"""Exit code of ranks that saved and stopped when they were told to go (SIGTERM)."""


@dataclass
class MachineOptions(Nodes):
    """What a run asks SkyPilot for.

    Attributes:
        gpu: The name of its GPUs, such as H100.
        cpus, memory: Of a node, as SkyPilot writes them: 8, or 8+ for at least as many; GiB.
        infra: Where: aws, gcp/us-central1, k8s; anywhere if None.
        spot: Machines that may be taken away.
        image: Of the machines, or a container's.
        setup: Shell lines before the run, such as `pip install ...`.
        buckets: SOURCE:PATH of buckets and where they are mounted.
        volumes: NAME:PATH of SkyPilot's volumes.
        variables: Environment variables that `sky` hands on as secrets, from the environment it is called in.
        name: Of the job; the run folder's if None.
        stop_before: Seconds a node's ranks have to save when they are told to go.
        max_restarts: Attempts after failures; pre-empted ones do not count.
    """

    gpu: str | None = None
    cpus: str | None = None
    memory: str | None = None
    infra: str | None = None
    spot: bool = False
    image: str | None = None
    setup: list[str] = field(default_factory=list)
    buckets: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    name: str | None = None
    stop_before: int = 120
    max_restarts: int = 3

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        self.check_numbers(stop_before=1, max_restarts=0)
        if not self.image and not self.setup:
            raise UserError(
                "Say how the nodes get llm-lightning: --image docker:IMAGE, or --setup 'pip install llm-lightning'."
            )
        if bool(self.gpus_per_node) != bool(self.gpu):
            raise UserError("--gpus-per-node and --gpu belong together: --gpus-per-node 8 --gpu H100.")
        for name in ("cpus", "memory"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\d+(\.\d+)?\+?", value):
                raise UserError(f"--{name}={value!r} is no amount of SkyPilot, such as 8, or 8+ for at least as many.")
        for bucket in self.buckets:
            if not re.fullmatch(r"[a-z0-9]+://[^:]+:/[^:]+", bucket):
                raise UserError(f"--bucket={bucket!r} must be SOURCE:PATH, such as s3://my-runs:/runs.")
        for volume in self.volumes:
            if not re.fullmatch(r"[^:/]+:/[^:]+", volume):
                raise UserError(f"--volume={volume!r} must be NAME:PATH, a volume's name and where it is mounted.")
        for variable in self.variables:
            if not re.fullmatch(r"[A-Za-z_]\w*", variable):
                raise UserError("--env takes an environment variable's name alone, such as --env WANDB_API_KEY.")
        if self.name is not None and not re.fullmatch(r"[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?", self.name):
            raise UserError(f"--name={self.name!r} must be of letters, digits and -, begin and end with no sign.")

    @property
    def mounted(self) -> dict[str, tuple[str, str]]:
        """Paths of what outlives a node, and which flag and value it came from."""
        given = [("bucket", each) for each in self.buckets] + [("volume", each) for each in self.volumes]
        return {value.rpartition(":")[2]: (kind, value.rpartition(":")[0]) for kind, value in given}

    def check_root(self, root: str) -> None:
        """Raise `UserError` where a run folder would go with its node."""
        if not any(PurePosixPath(root).is_relative_to(path) for path in self.mounted):
            raise UserError(
                f"trainer.default_root_dir={root} lies on no --bucket and no --volume, so that checkpoints would go "
                "with the machine: give --bucket SOURCE:PATH, and a run folder in PATH."
            )


def managed_job(options: MachineOptions, name: str, arguments: list[str], files: dict[str, str]) -> dict[str, Any]:
    """The task, as `sky jobs launch` takes it.

    Args:
        options: What SkyPilot is asked for.
        name: Of the job.
        arguments: Of `llm-lightning` on the nodes.
        files: Texts by name, which the nodes find in `SETTINGS`.
    """
    resources: dict[str, Any] = {}
    for key, value in (("infra", options.infra), ("cpus", options.cpus), ("memory", options.memory),
                       ("image_id", options.image)):  # fmt: skip
        if value:
            resources[key] = value
    if options.gpus_per_node:
        resources["accelerators"] = f"{options.gpu}:{options.gpus_per_node}"
    if options.spot:
        resources["use_spot"] = True
    resources["job_recovery"] = {
        "max_restarts_on_errors": options.max_restarts,
        "recover_on_exit_codes": [STOPPED],
    }
    task: dict[str, Any] = {"name": name, "num_nodes": options.nodes, "resources": resources}
    buckets = {path: source for path, (kind, source) in options.mounted.items() if kind == "bucket"}
    volumes = {path: source for path, (kind, source) in options.mounted.items() if kind == "volume"}
    if buckets:
        # MOUNT cannot append, which metrics.csv and logs need.
        task["file_mounts"] = {path: {"source": source, "mode": "MOUNT_CACHED"} for path, source in buckets.items()}
    if volumes:
        task["volumes"] = volumes
    if options.variables:
        task["secrets"] = dict.fromkeys(options.variables)
    if options.setup:
        task["setup"] = "\n".join(options.setup) + "\n"
    task["run"] = run_script(options, arguments, files)
    return task


def run_script(options: MachineOptions, arguments: list[str], files: dict[str, str]) -> str:
    """What SkyPilot runs on each node, by bash, under its `SKYPILOT_*` variables."""
    lines = []
    if files:
        lines.append(f"mkdir -p {SETTINGS}")
    for name, text in files.items():
        lines += [
            f"cat > {shlex.quote(f'{SETTINGS}/{name}')} <<'END OF SETTINGS'",
            text.rstrip("\n"),
            "END OF SETTINGS",
        ]
    lines += [
        'export PET_NNODES="$SKYPILOT_NUM_NODES" PET_NODE_RANK="$SKYPILOT_NODE_RANK"',
        f"export PET_NPROC_PER_NODE={options.ranks_per_node} PET_MASTER_PORT={PORT}",
        'export PET_MASTER_ADDR="$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"',
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={options.stop_before} PYTHONUNBUFFERED=1",
        " \\\n    ".join(["exec python -m llm_lightning.launch.agent", *(shlex.quote(word) for word in arguments)]),
    ]
    return "\n".join(lines) + "\n"
