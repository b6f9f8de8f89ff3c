"""The stopwatch as a callback of transformers' Trainer, and of the trainers that are made of it."""

from typing import Any

from transformers import TrainerCallback

from benchmarks.step_clock import StepClock


class Ticker(TrainerCallback):
    """Tells the clock of each optimizer step, and of how many there will be where it does not know."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.clock.steps is None:
            self.clock.expect(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.tick()
