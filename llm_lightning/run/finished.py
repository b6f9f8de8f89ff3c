"""Where a run goes on: whether the settings allow it, and whether anything is left to do."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import callbacks
from llm_lightning.checkpoints.checkpoint_io import is_before_validation, step_of, training_state
from llm_lightning.checkpoints.damage import last_good_checkpoint
from llm_lightning.modules.base import STATE_KEY, LanguageModule
from llm_lightning.run.folder import read_config
from llm_lightning.run.resumed_settings import On, changes, in_words, kind_of, refuse

Changes = dict[str, tuple[Any, Any]]


def compare_settings(checkpoint: Path, config: dict[str, Any]) -> Changes:
    """What is given now in other words than when the checkpoint's run was last started.

    Raises:
        UserError: a setting must not change while a run goes on.
    """
    folder = checkpoint.parent.parent
    before = read_config(folder)
    found = changes(before, config) if before else {}
    refuse(found, folder)
    return found


def tell(found: Changes) -> None:
    """Say which changes take effect."""
    words = [f"{n} {in_words(a)} -> {in_words(b)}" for n, (a, b) in found.items() if kind_of(n) is On.EFFECT]
    if words:
        rank_zero_info(f"Changed from here on: {'; '.join(words)}.")


def check_finished(module: LanguageModule, datamodule: LightningDataModule, checkpoint: Path, found: Changes) -> None:
    """Compare the network and the data with those of a finished run, which reads neither.

    Raises:
        UserError, DataError: they are others.
    """
    state = training_state(checkpoint)
    if STATE_KEY in state:
        module.check_beginning(state[STATE_KEY])
    own = state.get(type(datamodule).__qualname__)
    if own and any(kind_of(n) is On.CONTENT and n.startswith(("data", "tokenizer")) for n in found):
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.load_state_dict(own)


def why_finished(trainer: Trainer, checkpoint: Path | str | None) -> str | None:
    """Why nothing is left to do behind this checkpoint, and the way on; None where something is, the last validation
    included, or the model folder is missing.
    """
    if not checkpoint or not (Path(trainer.default_root_dir) / "model" / "last").exists():
        return None
    state = training_state(Path(checkpoint))
    if is_before_validation(state) or _missed_best(trainer, state):
        return None
    if 0 <= trainer.max_steps <= (step_of(Path(checkpoint)) or 0):
        return f"{checkpoint} is its last step. Raise trainer.max_steps to go on"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= _epochs(state):
        return f"{checkpoint} ends its last epoch. Raise trainer.max_epochs to go on"
    stopping = stop_when(trainer)
    own = stopping and state.get("callbacks", {}).get(stopping.state_key)
    if own and (stopped := stopping.still_stopped(own)):  # type: ignore[union-attr]
        return (
            f"it was stopped at step {stopped['step']}: {stopped['reason']}. To go on, change that condition "
            f"({stopped['condition'].split()[0]} in trainer.callbacks) or take it out"
        )
    for gate in safety_gates(trainer):
        own = state.get("callbacks", {}).get(gate.state_key)
        if own and (stopped := gate.still_stopped(own)):
            return (
                f"it was stopped at step {stopped['step']}: {stopped['reason']}. To go on, set SafetyGate.action=warn"
            )
    return None


def report_unsafe(trainer: Trainer) -> int:
    """The exit code of a fit that is at its end: 1 where a safety gate that stops found a change for the worse, since
    nothing that stands behind this run may take its network for a good one.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return 0
    found = next(filter(None, (gate.failure(trainer) for gate in safety_gates(trainer))), None)
    if found is None:
        return 0
    if trainer.is_global_zero:
        root = Path(trainer.default_root_dir)
        print(
            f"\nllm-lightning: error: The safety gate: {found}. The checkpoints and {root / 'model'} are whole; "
            f"{root / 'safety.json'} and {root / 'report.html'} tell more. SafetyGate.action=warn lets it pass.",
            file=sys.stderr,
        )
    return 1


def safety_gates(trainer: Trainer) -> list[callbacks.SafetyGate]:
    """The run's gates."""
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in every if isinstance(each, callbacks.SafetyGate)]


def stop_when(trainer: Trainer) -> callbacks.StopWhen | None:
    """The run's `StopWhen`, None where it has none."""
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in every if isinstance(each, callbacks.StopWhen)), None)


def trained_weights(trainer: Trainer) -> Path | None:
    """The checkpoint of the weights that a run ends with, None where it has none.

    Raises:
        UserError: it has some, and none is whole.
    """
    folder, stopping = Path(trainer.default_root_dir) / "checkpoints", stop_when(trainer)
    names = ["best", "step"] if stopping is not None and stopping.restore_best else ["step"]
    found = (last_good_checkpoint(folder, name, strategy=trainer.strategy) for name in names)
    return next(filter(None, found), None)


def _epochs(state: dict[str, Any]) -> int:
    """Whole epochs, that of a checkpoint at an epoch's last batch included; -1 where it is not known (DeepSpeed)."""
    if "loops" not in state:
        return -1
    loop = state["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    is_within = epochs["started"] > epochs["processed"]
    return epochs["processed"] + int(is_within and loop["epoch_loop.batch_progress"]["is_last_batch"])


def _missed_best(trainer: Trainer, state: dict[str, Any]) -> bool:
    """Whether a full disk kept the best model folder from being written."""
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    folders = [each for each in every if isinstance(each, callbacks.ModelFolder)]
    return any(state.get("callbacks", {}).get(each.state_key, {}).get("missed") for each in folders)
