"""Progress of a run: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.training_loop import is_accumulating

BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class TrainingProgress(ProgressBar):
    """Shows the whole fit as one bar that counts optimizer steps, with loss, tokens/s and time left.

    Validation appears as a short bar below it, and leaves its loss behind. Where the output is no terminal (a batch
    job's log), a plain line is written every `interval_s` seconds instead. Only the first rank writes, to stderr.

    Args:
        interval_s: Seconds between two lines of a log file. 30 tells soon enough that a run hangs, and makes about a
            thousand lines in a night.

    Raises:
        CallbackError: `interval_s` is negative.
    """

    # Reading a metric waits for the GPU, so the bar is not drawn at every step.
    REFRESH_S = 0.5

    def __init__(self, interval_s: float = 30.0) -> None:
        super().__init__()
        if interval_s < 0:
            raise CallbackError(f"TrainingProgress.interval_s: {interval_s} is negative; use a number of seconds.")
        self.interval_s = interval_s
        self._enabled = True
        self._bar: tqdm | None = None
        self._inner: tqdm | None = None
        self._last_shown = float("-inf")

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; false on every rank but the first."""
        return self._enabled

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints to stdout, above the bars."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(*args, **kwargs)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self._total = int(steps) if 0 < steps < float("inf") else None
        self._first_step, self._started = trainer.global_step, time.monotonic()
        self._last_shown = float("-inf")
        self._is_terminal = sys.stderr.isatty()
        if self._enabled and self._is_terminal:
            self._bar = tqdm(
                desc="Training",
                initial=self._first_step,
                total=self._total,
                dynamic_ncols=True,
                bar_format=BAR_FORMAT,
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = time.monotonic()
        since = now - self._last_shown
        if not self._enabled or is_accumulating(trainer):
            return
        is_last = trainer.global_step == self._total
        if since >= (self.REFRESH_S if self._is_terminal else self.interval_s) or is_last:
            self._last_shown = now
            self._show(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._show(trainer)
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_inner("Checking validation" if trainer.sanity_checking else "Validating", trainer.num_val_batches)

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._advance_inner()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_inner()
        if self._enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._report(trainer)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_inner("Testing", trainer.num_test_batches)

    @override
    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._advance_inner()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_inner()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_inner("Predicting", trainer.num_predict_batches)

    @override
    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._advance_inner()

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_inner()

    def _show(self, trainer: Trainer) -> None:
        values = _format(
            trainer, {"loss": "train/loss", "reward": "train/reward", "tokens/s": "throughput/tokens_per_s"}
        )
        if self._bar is not None:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(values)
            return
        steps = trainer.global_step if self._total is None else f"{trainer.global_step}/{self._total}"
        self._line(", ".join(filter(None, (f"step {steps}", values, self._time_left(trainer)))))

    def _report(self, trainer: Trainer) -> None:
        """Leaves a validation's result standing, above the bar or in the log."""
        values = _format(trainer, {"val loss": "val/loss", "val reward": "val/reward", "perplexity": "val/perplexity"})
        if values:
            self._line(f"step {trainer.global_step}, {values}")

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _time_left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first_step
        if self._total is None or done == 0:
            return "time left unknown"
        seconds = (time.monotonic() - self._started) / done * (self._total - trainer.global_step)
        return f"{tqdm.format_interval(seconds)} left"

    def _open_inner(self, description: str, num_batches: int | float | list[int | float]) -> None:
        if not self._enabled or not sys.stderr.isatty():
            return
        total = sum(num_batches) if isinstance(num_batches, list) else num_batches
        self._inner = tqdm(
            desc=description,
            total=None if total == float("inf") else int(total),
            leave=self.trainer.state.fn != "fit",
            dynamic_ncols=True,
            bar_format=BAR_FORMAT,
        )

    def _advance_inner(self) -> None:
        if self._inner is not None:
            self._inner.update()

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _close(self) -> None:
        self._close_inner()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _format(trainer: Trainer, names: dict[str, str]) -> str:
    """Those of the metrics that are there, as `loss 3.211, tokens/s 4,213`."""
    metrics = trainer.callback_metrics
    found = {label: float(metrics[name]) for label, name in names.items() if name in metrics}
    return ", ".join(
        f"{label} {value:,.0f}" if value >= 1000 else f"{label} {value:.4g}" for label, value in found.items()
    )
