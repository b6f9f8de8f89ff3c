"""The nodes of a run and the ranks on each, which every launcher asks for by the same flags."""

from dataclasses import dataclass

from llm_lightning.errors import UserError


@dataclass
class Nodes:
    """What any cluster is asked for.

    Attributes:
        nodes: How many.
        gpus_per_node: GPUs of each, with a rank of its own for each; 0 on CPUs.
        tasks_per_node: Ranks of each on CPUs.
        dry_run: Print what would be submitted and submit nothing.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1
    dry_run: bool = False

    @property
    def ranks_per_node(self) -> int:
        """One for each GPU, else the tasks asked for."""
        return self.gpus_per_node or self.tasks_per_node

    def check_numbers(self, **least: int) -> None:
        """Raise `UserError` for a number that is below its least one, of the launcher's own by name too."""
        for name, lowest in {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, **least}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"--{name.replace('_', '-')}={value} is below {lowest}.")
        if self.gpus_per_node and self.tasks_per_node != 1:
            raise UserError("--tasks-per-node is for CPUs; with --gpus-per-node each GPU has a rank. Give one of them.")

    def arguments(self, command: str, given: list[str], root: str) -> list[str]:
        """A run's command line on each node.

        Args:
            command: `fit` or another.
            given: the run's own arguments, a word each.
            root: its run folder, with which those are read that name none.
        """
        own = [word for word in given if not word.startswith("--trainer.default_root_dir=")]
        return [
            command,
            *own,
            f"--trainer.accelerator={'gpu' if self.gpus_per_node else 'cpu'}",
            f"--trainer.devices={self.ranks_per_node}",
            f"--trainer.num_nodes={self.nodes}",
            f"--trainer.default_root_dir={root}",
        ]
