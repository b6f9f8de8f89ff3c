"""The manifest of a run on Kubernetes: a JobSet (jobset.x-k8s.io) whose pods are the nodes of torchrun."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.launch.nodes import Nodes

WORKERS, PORT = "node", 29500
MISTAKE = 2
"""Exit code of a mistake that another attempt would not mend."""
KILLED_BEHIND = 15
"""Seconds that a pod has beyond those in which its ranks save."""
SETTINGS = "/etc/llm-lightning"
_QUANTITY = re.compile(r"\d+(\.\d+)?([mkMGTP]|[KMGTP]i)?")


@dataclass
class PodOptions(Nodes):
    """What a run asks the cluster for; its nodes are pods.

    Attributes:
        image: Of the container, with llm-lightning in its `python`.
        cpus, memory: Of a pod, as Kubernetes writes quantities.
        volumes: CLAIM:PATH of persistent volume claims; one of them holds the run folder.
        env_from: Names of Secrets whose keys become environment variables.
        name: Of the JobSet; the run folder's if None.
        namespace: Where it goes.
        queue: Of Kueue.
        node_selector: LABEL=VALUE that nodes must have.
        stop_before: Seconds a pod has to save when it is told to go.
        max_restarts: Attempts after failures; pre-empted ones do not count.
    """

    image: str = ""
    cpus: str | None = None
    memory: str | None = None
    volumes: list[str] = field(default_factory=list)
    env_from: list[str] = field(default_factory=list)
    name: str | None = None
    namespace: str | None = None
    queue: str | None = None
    node_selector: list[str] = field(default_factory=list)
    stop_before: int = 120
    max_restarts: int = 3

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if not self.image:
            raise UserError("--image is missing: a container image whose `python` has llm-lightning.")
        self.check_numbers(stop_before=1, max_restarts=0)
        for name in ("cpus", "memory"):
            value = getattr(self, name)
            if value is not None and not _QUANTITY.fullmatch(value):
                raise UserError(f"--{name}={value!r} is no quantity of Kubernetes, such as 8, 500m or 64Gi.")
        for volume in self.volumes:
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*:/.+", volume):
                raise UserError(f"--volume={volume!r} must be CLAIM:PATH, a claim's name and where it is mounted.")
        for selector in self.node_selector:
            if not re.fullmatch(r"[\w./-]+=[\w.-]*", selector):
                raise UserError(f"--node-selector={selector!r} must be LABEL=VALUE.")
        if self.name is not None and name_of(self.name) != self.name:
            raise UserError(f"--name={self.name!r} must be of a-z, 0-9 and -, begin with a letter, 40 at most.")

    @property
    def mounts(self) -> list[tuple[str, str]]:
        """Claims and where they are."""
        return [(claim, path) for claim, _, path in (volume.partition(":") for volume in self.volumes)]

    def check_root(self, root: str) -> None:
        """Raise `UserError` where a run folder would go with its pod."""
        folder = PurePosixPath(root)
        if not any(folder.is_relative_to(path) for _, path in self.mounts):
            raise UserError(
                f"trainer.default_root_dir={root} lies on no --volume, so that checkpoints would go with the pod: give "
                "--volume CLAIM:PATH, and a run folder in PATH."
            )


def name_of(text: str) -> str:
    """A name as Kubernetes takes it; pods' names, which are longer, have to fit into 63 letters."""
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:40].strip("-")
    return name if re.match("[a-z]", name) else f"run-{name}".strip("-")


def manifests(options: PodOptions, name: str, arguments: list[str], files: dict[str, str]) -> list[dict[str, Any]]:
    """A ConfigMap, where there are files, and the JobSet.

    Args:
        options: What the cluster is asked for.
        name: Of both.
        arguments: Of `llm-lightning` in the container.
        files: Texts by name, which the container finds in `SETTINGS`.
    """
    metadata: dict[str, Any] = {"name": name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    found = []
    if files:
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata}, "data": files})
    if options.queue:
        metadata = metadata | {"labels": {"kueue.x-k8s.io/queue-name": options.queue}}
    pod = _pod(options, name, arguments, has_files=bool(files))
    job = {
        "parallelism": options.nodes,
        "completions": options.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # all pods start again together, or none
        "podFailurePolicy": {"rules": _POD_RULES},
        "template": {"spec": pod},
    }
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": name},
        "failurePolicy": {"maxRestarts": options.max_restarts, "rules": _SET_RULES},
        "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": job}}],
    }
    return [*found, {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}]


# Both end the job under one reason, PodFailurePolicy; which of them it was, is in the message.
_POD_RULES = [
    {"action": "FailJob", "onExitCodes": {"containerName": WORKERS, "operator": "In", "values": [MISTAKE]}},
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]
_SET_RULES = [
    {
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [f"exit code {MISTAKE} "],
    },
    {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": ["DisruptionTarget"],
    },
]


def _pod(options: PodOptions, name: str, arguments: list[str], *, has_files: bool) -> dict[str, Any]:
    amounts = {"cpu": options.cpus, "memory": options.memory}
    requests = {key: value for key, value in amounts.items() if value is not None}
    gpus = {"nvidia.com/gpu": str(options.gpus_per_node)} if options.gpus_per_node else {}
    mounts = [{"name": f"claim-{i}", "mountPath": path} for i, (_, path) in enumerate(options.mounts)]
    volumes: list[dict[str, Any]] = [
        {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}}
        for i, (claim, _) in enumerate(options.mounts)
    ]
    # Ranks and loader workers hand tensors on in shared memory, of which a container has 64 MB.
    mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    if has_files:
        mounts.append({"name": "settings", "mountPath": SETTINGS})
        volumes.append({"name": "settings", "configMap": {"name": name}})
    container: dict[str, Any] = {
        "name": WORKERS,
        "image": options.image,
        "command": ["python", "-m", "llm_lightning.launch.agent"],
        "args": [argument.replace("$(", "$$(") for argument in arguments],  # Kubernetes puts variables into $(NAME)
        "env": _environment(options, name),
        "resources": {"requests": requests | gpus, "limits": gpus},
        "volumeMounts": mounts,
    }
    if options.env_from:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.env_from]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.stop_before + KILLED_BEHIND,
        "containers": [container],
        "volumes": volumes,
    }
    if options.node_selector:
        pod["nodeSelector"] = dict(selector.split("=", 1) for selector in options.node_selector)
    return pod


def _environment(options: PodOptions, name: str) -> list[dict[str, Any]]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    values = {
        "PET_NNODES": options.nodes,
        "PET_NPROC_PER_NODE": options.ranks_per_node,
        "PET_MASTER_ADDR": f"{name}-{WORKERS}-0-0.{name}",
        "PET_MASTER_PORT": PORT,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": options.stop_before,
        "PYTHONUNBUFFERED": 1,
    }
    given = [{"name": key, "value": str(value)} for key, value in values.items()]
    return [*given, {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}}]
