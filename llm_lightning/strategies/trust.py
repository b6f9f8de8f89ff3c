"""Which strategies may read checkpoints: those that run no code in doing so, unless the user says otherwise."""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from llm_lightning.errors import UserError


def check_strategy(strategy: Any) -> None:
    """Refuse Lightning's own sharded strategies, which unpickle the checkpoints that they go on from.

    Raises:
        UserError: with the overlay to take.
    """
    own = type(strategy).__module__.startswith("lightning.")
    if own and isinstance(strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        overlay = "deepspeed_zero2.yaml" if isinstance(strategy, DeepSpeedStrategy) else "fsdp.yaml"
        raise UserError(
            f"trainer.strategy={type(strategy).__name__} is Lightning's own, which runs the code in the checkpoints "
            f"that it reads: take --config configs/trainer/{overlay}."
        )


def refuse_pickles(path: Path, trusted: bool) -> None:
    """Raise `UserError` for a checkpoint of DeepSpeed where the user has not said that it may be unpickled."""
    if not trusted:
        raise UserError(
            f"ckpt_path={str(path)!r} is a checkpoint of DeepSpeed, a pickle: reading it runs whatever code it holds. "
            "If nobody else could write to it, say so by --trainer.strategy.trust_checkpoints=true; else start over "
            "with --resume false."
        )
