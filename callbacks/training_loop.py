"""Lightning's training loop, of which callbacks have to know more than its public names tell.

Whatever callbacks read of its private names, and whatever they write into its counters, is in this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import Trainer


class Limits(NamedTuple):
    """What keeps a fit from ending at once."""

    val_batches: int | float
    min_steps: int | None
    min_epochs: int | None


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer step of the batch that was just trained on is still to come."""
    return trainer.fit_loop._should_accumulate()


def may_stop(trainer: Trainer) -> bool:
    """Whether the run is past `trainer.min_steps` and `trainer.min_epochs`."""
    return trainer.fit_loop._can_stop_early


def ends_run(trainer: Trainer) -> bool:
    """Whether the step that was just done is the run's last."""
    is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    return (
        trainer.global_step == trainer.max_steps
        or (is_last_epoch and trainer.fit_loop.epoch_loop._is_training_done)
        or (trainer.should_stop and may_stop(trainer))
    )


def logs_now(trainer: Trainer) -> bool:
    """Whether this step is logged, by `trainer.log_every_n_steps`."""
    return trainer._logger_connector.should_update_logs


def log_step(trainer: Trainer) -> None:
    """Log the step now: Lightning does it after its hooks, which a run that is killed before never comes to."""
    if logs_now(trainer):
        connector = trainer._logger_connector
        connector.log_metrics(connector.metrics["log"])


def num_val_batches(trainer: Trainer) -> int | float:
    """Of one validation, over all loaders; 0 where it is not known yet."""
    return sum(trainer.fit_loop.epoch_loop.val_loop._max_batches)


def validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that was just trained on; where that is not known yet, no."""
    loop = trainer.fit_loop
    has_batches = num_val_batches(trainer) > 0
    return has_batches and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def is_on_schedule(trainer: Trainer) -> bool:
    """In a validation of a fit: whether it would run had nobody told the run to stop."""
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return validates_now(trainer)
    finally:
        trainer.should_stop = stops


def validates_by_time(trainer: Trainer) -> bool:
    """Whether validations come after so much time, and not after so many batches."""
    return trainer._val_check_time_interval is not None  # type: ignore[attr-defined]


def settle_resumed_counters(trainer: Trainer) -> None:
    """In `on_train_start`: let the counters that a checkpoint brought not be taken for those of what comes now."""
    loop = trainer.fit_loop
    # Lightning has read by now whether the checkpoint was written within a validation; later ones are not.
    loop.epoch_loop.val_loop.batch_progress.total.reset()
    epochs: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        # The checkpoint ended its epoch. Lightning would not count the next one as started, and a second resumption
        # from within it would train a whole epoch more.
        loop.reset_restart_stage()


@contextmanager
def batch_counted_as_done(trainer: Trainer, count: int) -> Iterator[None]:
    """The loop's counters as they are behind the training batch's hooks (1), or as `on_train_batch_end` sees them (-1).

    Lightning resumes a checkpoint that was written behind a validation in another way, which numbers the logged steps
    one too low where that validation was not on the schedule (the one that it runs when it is told to stop).
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.completed += count
    try:
        yield
    finally:
        for counts in (progress.total, progress.current):
            counts.completed -= count


@contextmanager
def validation_begun_anew(trainer: Trainer) -> Iterator[None]:
    """A checkpoint that is written inside makes the run that goes on from it validate first."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset_on_run()
    progress.total.reset()
    # What tells Lightning so: a batch was started and is not done.
    progress.total.ready = progress.total.started = 1  # type: ignore[attr-defined]
    try:
        yield
    finally:
        progress.total.reset()  # the validation may run yet, and is counted from its first batch


def end_fit(trainer: Trainer) -> Limits:
    """End the fit behind this step, without the validation that Lightning runs when it is told to stop.

    Returns:
        What `restore_limits` gives the trainer back.
    """
    loop = trainer.fit_loop
    limits = Limits(trainer.limit_val_batches, loop.epoch_loop.min_steps, loop.min_epochs)
    trainer.should_stop = True
    trainer.limit_val_batches, loop.epoch_loop.min_steps, loop.min_epochs = 0, None, 0
    return limits


def restore_limits(trainer: Trainer, limits: Limits) -> None:
    """Undo what `end_fit` did to the limits of the trainer."""
    loop = trainer.fit_loop
    trainer.limit_val_batches, loop.epoch_loop.min_steps, loop.min_epochs = limits
