"""A resumed run's optimizer: its moments are the checkpoint's, its settings those of the command."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llm_lightning.errors import UserError

Settings = list[dict[str, Any]]


def settings_of(optimizer: Optimizer) -> Settings:
    """Each parameter group's settings, as they were given."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def put_back(optimizer: Any, schedulers: Sequence[LambdaLR], settings: Settings) -> None:
    """Give the optimizer its settings again, and the schedule's rate of the step that comes next.

    A checkpoint brings the settings it was made with, and the rate that its own schedule had: with another length or
    learning rate the first step would be trained at the former one, and all others at the former peak.

    Raises:
        UserError: the checkpoint is of an optimizer with other settings, and so with another state.
    """
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        saved = set(group) - {"params", "initial_lr"}
        if saved != set(own) - {"initial_lr"}:
            raise UserError(
                f"model.optimizer: the checkpoint is of another one, with the settings {', '.join(sorted(saved))}."
                " Give that one, another trainer.default_root_dir, or start over with --resume false."
            )
        group.update(own)
    for scheduler in schedulers:
        scheduler.base_lrs = [own["lr"] for own in settings]
        for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["initial_lr"] = base
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
