"""A reward model's own scale: mean and spread of its rewards on a reference set, kept with the model."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

FILE = "reward_normalization.json"
KEY = "reward_normalization"
"""Under this name it is in the config.json of a model folder; an adapter folder has it in `FILE`."""


@dataclass(frozen=True)
class Normalization:
    """(reward - mean) / std, which has mean 0 and variance 1 on the reference set.

    Bradley-Terry knows differences alone, so that a reward's zero and unit mean nothing until they are chosen (Stiennon
    et al., arXiv:2009.01325, and Ouyang et al., arXiv:2203.02155, shift the mean of reference responses to 0).

    Args:
        mean, std: of the rewards of the reference set.
        num_answers: how many responses there were; 0 where nothing was measured.
    """

    mean: float = 0.0
    std: float = 1.0
    num_answers: int = 0

    @classmethod
    def of_sums(cls, count: float, total: float, squares: float) -> "Normalization":
        """From the number of rewards, their sum and the sum of their squares."""
        if not count:
            return cls()
        mean = total / count
        std = math.sqrt(max(0.0, squares / count - mean**2))
        # All alike, as those of a head that learned nothing yet: only the zero is known.
        return cls(mean, std or 1.0, int(count))

    @classmethod
    def of_config(cls, config: Any) -> "Normalization":
        """What a model folder's config says; nothing is changed where it says none."""
        return cls(**(getattr(config, KEY, None) or {}))

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards (N,) on the reference set's scale."""
        return (rewards - self.mean) / self.std

    def as_dict(self) -> dict[str, Any]:
        """For a config or a checkpoint."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write it beside an adapter."""
        (folder / FILE).write_text(json.dumps(self.as_dict()))


def read_normalization(folder: Path, config: Any) -> None:
    """Put what lies beside an adapter into the config of the network that it is merged into."""
    if (folder / FILE).is_file():
        setattr(config, KEY, json.loads((folder / FILE).read_text()))
