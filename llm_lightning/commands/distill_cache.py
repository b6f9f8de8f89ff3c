"""`llm-lightning distill-cache`: what a teacher finds likely, computed before any fit that learns from it."""

from typing import Any

from lightning.pytorch import Trainer

from llm_lightning.cli import TrainingCLI
from llm_lightning.cli import run as run_cli
from llm_lightning.errors import UserError
from llm_lightning.modules import Distillation

USAGE = """\
usage: llm-lightning distill-cache [--config FILE ...] [--KEY VALUE ...]

Computes what the teachers of a Distillation find likely of each trained token, into the data's cache, and trains
nothing. The settings are those of `fit`, with --model.teacher_logprobs cached; the fit then finds all of it there and
holds no teacher. Stopped, even by kill -9, the same command goes on behind the last row that it wrote.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: those of `fit`.
        debug: raise instead.
    """
    if not args or "--help" in args:
        print(USAGE, end="")
        return 0
    return run_cli(["fit", *args], debug=debug, kind=_CachingCLI)


class _CachingCLI(TrainingCLI):
    """Sets up all that a fit has but its callbacks, its loggers and its optimizer, and stops there."""

    def before_instantiate_classes(self) -> None:
        """As for a fit that does not write its settings."""
        super().before_instantiate_classes()
        self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of a fit that leaves no run behind."""
        trainer = super().instantiate_trainer(**kwargs, limit_val_batches=0)
        trainer.callbacks.clear()  # type: ignore[attr-defined]
        trainer.loggers = []
        return trainer

    def fit(self, **_: Any) -> None:
        """Let the module fill its cache, as it does before it trains."""
        if not isinstance(self.model, Distillation):
            raise UserError(f"distill-cache: {type(self.model).__name__} has no teacher; use --model Distillation.")
        if self.model.teacher_logprobs != "cached":
            raise UserError(
                f"model.teacher_logprobs={self.model.teacher_logprobs} keeps nothing of the teacher: give "
                "--model.teacher_logprobs cached, here and to fit."
            )
        self._check()
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
