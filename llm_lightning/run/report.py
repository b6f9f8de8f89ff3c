"""What a fit leaves to be read: the commands that started it, and a page about it."""

import warnings
from datetime import datetime
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from llm_lightning.report.page import write_report
from llm_lightning.report.run_folder import COMMANDS
from llm_lightning_safety.files import open_unlinked

NAME = "report.html"


class RunReport(Callback):
    """Notes the command in `commands.txt` when fit starts, and writes `report.html` when it ends.

    It stands behind whatever else writes at the end of fit. Only the first rank writes; what goes wrong is a warning,
    and the run is none the worse for it.

    Args:
        command: that started this process, without secrets.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the command, not before the checkpoint was read: a command that is refused there trains nothing."""
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / COMMANDS
        step = f", from step {trainer.global_step}" if trainer.global_step else ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_unlinked(path, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}{step}: {self.command}\n")
        except OSError as error:
            warnings.warn(f"The command was not noted: {error}", stacklevel=2)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        try:
            write_report([folder], folder / NAME)
        except Exception as error:  # whatever it is, the run is whole without the page
            warnings.warn(f"{NAME} was not written: {error!r}", stacklevel=2)
        else:
            pl_module.print(f"{'report':>14}  {folder / NAME}")
