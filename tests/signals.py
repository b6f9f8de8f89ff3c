"""A callback that makes a run meet a signal at an exact place."""

import os
import signal

from lightning.pytorch import Callback

from callbacks.training_loop import is_accumulating


class SignalAt(Callback):
    """Sends this process a signal before the last micro-batch of step `step + 1`, or in the validation of `step`."""

    def __init__(self, name: str, step: int, in_validation: bool = False) -> None:
        self.number = signal.Signals[name]
        self.step = step
        self.in_validation = in_validation

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and not self.in_validation and not is_accumulating(trainer):
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and self.in_validation and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)
