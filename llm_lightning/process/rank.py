"""Which rank this process is, before any strategy has asked."""

import os
from collections.abc import Mapping


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of those that srun or torchrun started."""
    return environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"
