"""What to change where a run does not fit, each with what it would take."""

import copy
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from peft import LoraConfig

from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.run_memory import RunMemory, memory_of

GIB = 2**30


def ways_out(memory: RunMemory, module: LanguageModule, datamodule: LightningDataModule, trainer: Trainer) -> str:
    """What takes less, a line each with its figure: settings are tried in turn, up to the first that fits.

    Args:
        memory: of the run, which does not fit.
        module, datamodule, trainer: as in `memory_of`.
    """
    lines = []
    for words, changed, data in _changes(memory, module, datamodule, trainer):
        step = memory_of(changed, data, trainer).step
        if step is None:
            continue
        fits = step.total <= memory.capacity.total
        lines.append(f"  {words}: {step.total / GIB:,.1f} GiB, {'which fits' if fits else 'which does not fit either'}")
        if fits:
            break
    sharded = "--config trainer/fsdp" + (" on several devices" if trainer.world_size == 1 else " on more devices")
    lines.append(f"  {sharded}: weights, gradients and optimizer are divided by their number")
    return "\n".join(lines)


def _changes(
    memory: RunMemory, module: LanguageModule, datamodule: Any, trainer: Trainer
) -> Iterator[tuple[str, LanguageModule, Any]]:
    """Settings in words, and the parts with them; smaller changes first."""
    assert memory.step is not None
    parts = memory.step.parts
    smaller, less = _with_one_row(datamodule), copy.deepcopy(module)
    less.backbone.activation_checkpointing = True
    rows, steps = memory.rows, trainer.accumulate_grad_batches
    split = f"--data.batch_size=1 --trainer.accumulate_grad_batches={rows * steps}"
    recompute = "--model.backbone.activation_checkpointing=true"
    if parts["weights"] + parts["optimizer"] < memory.capacity.total:  # else shorter work is of no use
        if rows > 1:
            yield split, module, smaller
        if not module.backbone.activation_checkpointing:
            yield recompute, less, datamodule
            if rows > 1:
                yield f"{split} {recompute}", less, smaller
    if module.peft is None and module.backbone.path is not None:
        adapted = copy.deepcopy(less)
        adapted.peft = LoraConfig(r=16, target_modules="all-linear")
        yield f"--config peft/lora {split} {recompute}", adapted, smaller


def _with_one_row(datamodule: Any) -> Any:
    copied = copy.copy(datamodule)
    if hasattr(datamodule, "data"):
        copied.data = _with_one_row(datamodule.data)
    else:
        copied.batch_size = 1
    return copied
