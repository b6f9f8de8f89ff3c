"""The weights of the best validation, kept on disk to be put back."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.stopping.conditions import Mode


class BestWeights:
    """Keeps `checkpoints/best=N.ckpt` (weights alone, N the step) of the best value so far.

    On disk and not in memory, so that a resumed run has them. The file that the newest checkpoint of the run names is
    kept beside the best one.

    Args:
        monitor: Metric that decides.
        mode: Whether a smaller (`min`) or a larger (`max`) value is better.
    """

    def __init__(self, monitor: str, mode: Mode) -> None:
        self.monitor = monitor
        self.mode = mode
        self.value: float | None = None
        self.step = 0
        self._resumable = 0  # step of the file that a resumed run would look for

    def offer(self, trainer: Trainer, value: float) -> None:
        """Keep the weights of now if they are the best; every rank calls it with the same value."""
        sign = 1 if self.mode == "min" else -1
        if math.isnan(value) or (self.value is not None and sign * (self.value - value) <= 0):
            return
        self.value, self.step = value, trainer.global_step
        trainer.save_checkpoint(_file(trainer, self.step), weights_only=True)
        kept = {_file(trainer, self.step), _file(trainer, self._resumable)}
        for old in set(_file(trainer, self.step).parent.glob("best=*.ckpt")) - kept if trainer.is_global_zero else ():
            trainer.strategy.remove_checkpoint(old)

    def forget(self) -> None:
        """Begin anew: the file is replaced by the next offer."""
        self.value = None

    def restore(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Put them back on every rank; says what was done, None where the last weights are the best."""
        if self.value is None or self.step == trainer.global_step:
            return None
        path = _file(trainer, self.step)
        if not trainer.strategy.broadcast(path.exists()):
            return f"{path} is missing: the weights stay those of step {trainer.global_step}."
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        pl_module.on_load_checkpoint(checkpoint)
        trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
        return f"The weights are those of step {self.step} again, the best by {self.monitor} ({self.value:.4g})."

    def state_dict(self) -> dict[str, Any]:
        """What to go on from."""
        self._resumable = self.step
        return {"monitor": self.monitor, "mode": self.mode, "value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it, where it was the same metric."""
        if (state_dict["monitor"], state_dict["mode"]) != (self.monitor, self.mode):
            return
        self.value, self.step = state_dict["value"], state_dict["step"]
        self._resumable = self.step


def _file(trainer: Trainer, step: int) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / f"best={step}.ckpt"
