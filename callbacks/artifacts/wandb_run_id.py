"""The W&B run's id as part of the training state."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from llm_lightning_safety.files import is_plain_name, make_folder, read_text, write_text


class WandbRunId(Callback):
    """Keeps the content of the run folder's `wandb/run-id` in the checkpoint.

    Where that file is, a W&B logger looks for the id of the run to continue. A checkpoint that is resumed in another
    run folder brings it along. Without a W&B logger there is no such file, and nothing is kept.
    """

    def __init__(self) -> None:
        self._note = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._note = Path(trainer.default_root_dir) / "wandb" / "run-id"
        self._writes = trainer.is_global_zero

    @override
    def state_dict(self) -> dict[str, Any]:
        if not self._note.is_file() or self._note.is_symlink():
            return {}
        noted = read_text(self._note).strip()
        return {"id": noted} if is_plain_name(noted) else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._writes and is_plain_name(str(state_dict["id"])):
            make_folder(self._note.parent)
            write_text(self._note, state_dict["id"])
