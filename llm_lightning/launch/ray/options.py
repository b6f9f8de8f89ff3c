"""What a run asks a Ray cluster for, and whether the cluster has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.launch.nodes import Nodes


@dataclass
class WorkerOptions(Nodes):
    """What a run asks the cluster for; each rank is a worker.

    Attributes:
        cpus_per_task: CPU cores that Ray reserves for a worker, its loader workers included.
        max_restarts: Attempts after failures; pre-empted ones do not count.
    """

    cpus_per_task: int = 1
    max_restarts: int = 3

    @property
    def resources(self) -> dict[str, int]:
        """Of a worker, as Ray names them."""
        return {"CPU": self.cpus_per_task} | ({"GPU": 1} if self.gpus_per_node else {})

    @property
    def placement(self) -> str:
        """How Ray is told to spread the workers; it knows no number of workers a node."""
        if self.nodes == 1:
            return "STRICT_PACK"
        return "STRICT_SPREAD" if self.ranks_per_node == 1 else "PACK"

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        self.check_numbers(cpus_per_task=1, max_restarts=0)

    def scaling(self) -> dict[str, Any]:
        """Arguments of `ray.train.ScalingConfig`."""
        return {
            "num_workers": self.nodes * self.ranks_per_node,
            "use_gpu": bool(self.gpus_per_node),
            "resources_per_worker": self.resources,
            "placement_strategy": self.placement,
        }

    def check_cluster(self, nodes: list[dict[str, Any]]) -> None:
        """Raise `UserError` where the workers would wait for ever: too few nodes could hold them if nobody else ran.

        Args:
            nodes: As `ray.nodes()` gives them.
        """
        alive = [node.get("Resources", {}) for node in nodes if node["Alive"]]
        asked = {name: count * self.ranks_per_node for name, count in self.resources.items()}
        fitting = [has for has in alive if all(has.get(name, 0) >= count for name, count in asked.items())]
        if len(fitting) >= self.nodes:
            return
        wanted = _amounts(asked)
        has = "; ".join(_amounts({name: node.get(name, 0) for name in ("CPU", "GPU")}) for node in alive) or "nothing"
        raise UserError(
            f"The run asks for {self.nodes} node{'s' if self.nodes > 1 else ''} with {wanted}, and {len(fitting)} of "
            f"the Ray cluster's {len(alive)} could hold that ({has}): the workers would wait for ever. Ask for less by "
            "--nodes, --gpus-per-node, --tasks-per-node or --cpus-per-task, or add nodes to the cluster first."
        )


def _amounts(counts: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
