"""Masked pretraining: tokens that are hidden in a document are told by what stands around them."""

from collections.abc import Mapping
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule

from llm_lightning.errors import UserError
from llm_lightning.models.heads import prepare_batch
from llm_lightning.models.tasks import MASKED
from llm_lightning.modules.prediction.tokens import TokenPrediction


class MaskedPretraining(TokenPrediction):
    """Masked language modelling of an encoder (BERT, arXiv:1810.04805) over packed rows.

    A token sees all of its document and nothing of others. The loss is that of the hidden tokens alone, summed, over
    how many the whole step has; only these go through the output layer.

    Args:
        kwargs: see `TokenPrediction`; `z_loss` is among them.
    """

    batch_kind = "masked texts"
    task = MASKED

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        if self.peft is not None:
            raise UserError("model.peft does not go with MaskedPretraining, which trains whole networks: leave it out.")
        super().check(datamodule)

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_batch`."""
        return prepare_batch(batch, two_way=True) if "labels" in batch else batch

    def predict_step(self, batch: Any, batch_idx: int) -> NoReturn:
        """Raise `UserError`: an encoder does not write."""
        raise UserError(
            "MaskedPretraining has nothing to write: transformers' pipeline `fill-mask` takes the folder model/last."
        )
