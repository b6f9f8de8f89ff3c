"""Steps that are small at the beginning of a run, when gradients of few tokens say as much as those of many."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from typing_extensions import override

from callbacks.contract import CountsTokens, required
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal
from callbacks.training_loop import is_accumulating, logs_now


class BatchSizeWarmup(Callback):
    """Accumulates `start` micro-batches a step at first, and `trainer.accumulate_grad_batches` in the end.

    The number grows in proportion to what was trained on, as the batch size of GPT-3 did (arXiv:2005.14165, from 32
    thousand tokens to millions over the first 4 to 12 billion). Modules divide a step's loss by its own tokens, so that
    each token of a small step weighs more than one of a large step, as with any two batch sizes.

    Lightning's `GradientAccumulationScheduler` does so by epochs, of which pretraining often has one. Lightning counts
    accumulation from the beginning of an epoch, and frees gradients where the batches of the epoch are a multiple of
    its number. So a new number begins where they are a multiple of it, at most as many steps later as it says.

    Logs `train/micro_batches`, of each step.

    Args:
        length: Of the growth, in `unit`s.
        unit: Trained `tokens` of all ranks, or optimizer `steps`.
        start: Micro-batches of the first step.

    Attributes:
        count: Micro-batches of a step, now.

    Raises:
        CallbackError: A setting is out of range; before training, if `start` is not below
            `trainer.accumulate_grad_batches`, or steps cannot differ: under DeepSpeed, for modules that step by
            themselves (PPO), and where something is counted in epochs, whose steps nobody knows then.
    """

    def __init__(self, length: int, unit: Literal["tokens", "steps"] = "tokens", start: int = 1) -> None:
        if length < 1:
            raise CallbackError(f"BatchSizeWarmup.length={length} must be at least 1.")
        if unit not in ("tokens", "steps"):
            raise CallbackError(f"BatchSizeWarmup.unit={unit!r} must be `tokens` or `steps`.")
        if start < 1:
            raise CallbackError(f"BatchSizeWarmup.start={start} must be at least 1.")
        self.length = length
        self.unit = unit
        self.start = start
        self.count = start
        self._full = start

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)
        self._full = trainer.accumulate_grad_batches
        self.count = min(self.count, self._full)  # a run that goes on may have been given fewer

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.unit == "tokens":
            required(pl_module, CountsTokens, self)
        if not pl_module.automatic_optimization:
            raise CallbackError(f"BatchSizeWarmup: {type(pl_module).__name__} makes its steps by itself; leave it out.")
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise CallbackError("BatchSizeWarmup: DeepSpeed's steps are all of one size: use ddp or fsdp2.")
        if trainer.accumulate_grad_batches <= self.start:
            raise CallbackError(
                f"BatchSizeWarmup.start={self.start} must be below "
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}, at which it ends: raise that, and "
                "lower data.batch_size."
            )
        if trainer.max_epochs not in (None, -1) and not is_rehearsal(trainer):
            raise CallbackError(
                f"BatchSizeWarmup: nobody knows how many steps of growing size trainer.max_epochs={trainer.max_epochs} "
                "are: count trainer.max_steps, with trainer.max_epochs=-1."
            )
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_interval < 1:
            raise CallbackError(
                f"BatchSizeWarmup: trainer.val_check_interval={trainer.val_check_interval} is a share of an epoch's "
                "steps, which grow: give a number of steps."
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.count == 0:  # else within a step
            by_tokens = self.unit == "tokens"
            done = required(pl_module, CountsTokens, self).tokens_seen if by_tokens else trainer.global_step
            self.count = self._next(batch_idx, done)
        trainer.accumulate_grad_batches = self.count

    def _next(self, batch_idx: int, done: int) -> int:
        """The largest number that it may have by now and that counts from here; at least the one that it has."""
        grown = self.start + (self._full - self.start) * min(done, self.length) // self.length
        fitting = (count for count in range(grown, self.count, -1) if batch_idx % count == 0)
        return next(fitting, self.count)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_accumulating(trainer) and logs_now(trainer):
            pl_module.log("train/micro_batches", float(self.count))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = self._full
