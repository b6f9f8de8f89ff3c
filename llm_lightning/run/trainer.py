"""Lightning's trainer with more commands; each is a subcommand of the command line."""

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from llm_lightning.errors import UserError
from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.meeting.looking import can_meet, meet_and_look
from llm_lightning.run.epoch_loop import StepwiseEpochLoop


class RunTrainer(Trainer):
    """Lightning's trainer, with the commands that Lightning has not, validations between optimizer steps, and a last
    one that is not lost; ranks are looked at as soon as they have met.
    """

    checks_ranks = True
    """Whether they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lightnings = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = StepwiseEpochLoop(self, lightnings.min_steps, lightnings.max_steps)

    @override
    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's. Ranks meet within it, and what is wrong with them is found before one prepares data for all."""
        strategy: Any = self.strategy
        if not self.checks_ranks or not can_meet(strategy):
            return super()._run(*args, **kwargs)
        meet = strategy.setup_environment
        # Lightning has no hook there: the next thing that it calls is `prepare_data`, on the first rank alone.
        strategy.setup_environment = lambda: meet_and_look(strategy, meet)
        try:
            return super()._run(*args, **kwargs)
        finally:
            del strategy.setup_environment

    @override
    def _run_stage(self) -> Any:
        """Lightning's; a run that was left in the validation behind its last step does that, and no more is to do."""
        validation = self.fit_loop.epoch_loop.val_loop
        if is_training := self.training:
            validation.update_restart_stage()  # which Lightning does where it has steps to go
        before = self.global_step
        results = super()._run_stage()
        if is_training and 0 < before == self.global_step and not validation.restarted_mid_evaluation:
            rank_zero_info("This run was finished: nothing was left to train.")
        if is_training and validation.restarted_mid_evaluation:  # and Lightning has had none
            self._call_everywhere("on_train_start")
            self.validating = True
            validation.run()
            self.training = True
            self._call_everywhere("on_train_end")
        return results

    def _call_everywhere(self, hook: str) -> None:
        call._call_callback_hooks(self, hook)
        call._call_lightning_module_hook(self, hook)
        call._call_strategy_hook(self, hook)

    def preview(self, model: LanguageModule, datamodule: LightningDataModule, num_records: int = 3) -> None:
        """Print the first training records as the model will see them, and statistics of all; nothing is trained.

        Args:
            num_records: how many to print.
        """
        lines = getattr(datamodule, "preview", None)
        if not callable(lines):
            raise UserError(f"preview: {type(datamodule).__name__} has nothing to show.")
        datamodule.prepare_data()
        datamodule.setup("fit")
        print(*lines(num_records), sep="\n")

    def augment(self, model: LanguageModule, datamodule: LightningDataModule) -> None:
        """Generate and filter the records of a `SyntheticDataModule`; nothing is trained."""
        augment = getattr(datamodule, "augment", None)
        if not callable(augment):
            raise UserError(f"augment: {type(datamodule).__name__} generates nothing; use --data SyntheticDataModule.")
        print(f"Records: {augment()}")
