"""Lightning's trainer with more commands; each is a subcommand of the command line."""

from lightning.pytorch import LightningDataModule, Trainer

from llm_lightning.errors import UserError
from llm_lightning.modules.base import LanguageModule


class RunTrainer(Trainer):
    """Lightning's trainer, with the commands that Lightning has not."""

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
