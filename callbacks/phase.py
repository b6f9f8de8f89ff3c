"""Where in a run a hook was called from."""

from lightning.pytorch import Trainer


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is `fast_dev_run`, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def is_validating_fit(trainer: Trainer) -> bool:
    """Whether a validation belongs to training: no sanity check, no `validate` of its own, no `fast_dev_run`."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking and not is_rehearsal(trainer)
