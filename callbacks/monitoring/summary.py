"""What a run achieved, in a few lines."""

import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.contract import NamesMonitor, offered
from callbacks.monitoring.energy import Energy
from callbacks.phase import is_validating_fit
from callbacks.stopping.stop_when import StopWhen
from callbacks.trainer_parts import callbacks_of


class RunSummary(Callback):
    """Prints at the end of fit what was reached, where the model lies, and what to do next.

    Which validation was the best a module says by its `monitor`, a metric and `min` or `max`; the lowest `val/loss`
    otherwise. It also speaks after a graceful stop. Only the first rank prints.

    Args:
        next_command: A command to show as the next step.
    """

    def __init__(self, next_command: str | None = None) -> None:
        self.next_command = next_command
        self._best: dict[str, float] = {}
        self._started = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer):
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        named = offered(pl_module, NamesMonitor)
        name, better = ("val/loss", "min") if named is None else named.monitor
        sign = -1 if better == "max" else 1
        if sign * metrics.get(name, sign * math.inf) < sign * self._best.get(name, sign * math.inf):
            self._best = metrics | {"step": trainer.global_step}

    def forget_best(self) -> None:
        """Begin anew: the network changed in a way that makes earlier validations incomparable."""
        self._best = {}

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            pl_module.print("\n" + self.text(trainer))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def text(self, trainer: Trainer) -> str:
        """The summary, one labelled line for each thing that is known."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rows = [
            ("steps", f"{trainer.global_step:,}"),
            ("stopped", _reason(trainer)),
            ("tokens", _number(metrics, "tokens")),
            ("train loss", _number(metrics, "train/loss")),
            ("val loss", self._validation(metrics, "val/loss")),
            ("train reward", _number(metrics, "train/reward")),
            ("val reward", self._validation(metrics, "val/reward")),
            ("rewards", self._each_reward()),
            ("KL", f"{_number(metrics, 'train/kl')} nats a completion" if "train/kl" in metrics else ""),
            ("accuracy", _number(self._best, "val/accuracy")),
            ("answers right", _number(self._best, "val/answer_accuracy")),
            ("calibration", _number(self._best, "val/ece")),
            ("perplexity", _number(self._best, "val/perplexity")),
            ("bits per byte", _number(self._best, "val/bits_per_byte")),
            ("speed", _speed(metrics)),
            *(("energy", each.text()) for each in callbacks_of(trainer, Energy)),
            ("time", f"{(time.monotonic() - self._started) / 60:.1f} min" if self._started else ""),
            *_folders(trainer),
            ("next", self.next_command or ""),
        ]
        return "\n".join(f"{label:>14}  {value}" for label, value in rows if value)

    def _validation(self, metrics: dict[str, float], name: str) -> str:
        best, last = _number(self._best, name), _number(metrics, name)
        if not best:
            return last
        return f"{best} (best, step {self._best['step']:,.0f})" + (f", {last} (last)" if last else "")

    def _each_reward(self) -> str:
        """Those that the best validation's reward is made of, and those that only look on."""
        names = [name for name in self._best if name.startswith("val/reward/") and name.count("/") == 2]
        return ", ".join(f"{name.removeprefix('val/reward/')} {_number(self._best, name)}" for name in names)


def _number(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _speed(metrics: dict[str, float]) -> str:
    if "throughput/tokens_per_s" not in metrics:
        return ""
    parts = [f"{metrics['throughput/tokens_per_s']:,.0f} tokens/s"]
    if "throughput/mfu" in metrics:
        parts.append(f"{metrics['throughput/mfu']:.1%} of the device's peak (MFU)")
    if "throughput/memory_mb" in metrics:
        parts.append(f"{metrics['throughput/memory_mb']:,.0f} MB")
    return ", ".join(parts)


def _reason(trainer: Trainer) -> str:
    stops = (each.stopped for each in callbacks_of(trainer, StopWhen))
    return "; ".join(f"{stopped['reason']} at step {stopped['step']:,}" for stopped in stops if stopped)


def _folders(trainer: Trainer) -> list[tuple[str, str]]:
    rows = []
    for each in callbacks_of(trainer, ModelFolder):
        rows += [("model", str(each.last)), ("best model", str(each.best))]
        rows += [("average", str(each.last.with_name("average")))]
    rows.append(("curves", str(Path(trainer.default_root_dir) / "curves.png")))
    return [(label, path) for label, path in rows if Path(path).exists()]
