"""Pretraining of encoder-decoders: spans that were taken out of a document are written anew."""

from collections.abc import Mapping
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule

from llm_lightning.errors import UserError
from llm_lightning.models.encoder_decoder import prepare_spans, spans_loss
from llm_lightning.models.heads import base_model
from llm_lightning.models.tasks import ENCODER_DECODER
from llm_lightning.modules.prediction.tokens import TokenPrediction
from llm_lightning.objectives.language import TokenLoss


class SpanPretraining(TokenPrediction):
    """Span corruption of an encoder-decoder (T5, arXiv:1910.10683) over packed rows.

    The encoder reads documents without some spans, the decoder writes these; both see one document alone. The loss is
    that of all tokens that are written, summed, over how many the whole step has.

    Args:
        kwargs: see `TokenPrediction`; `z_loss` is among them (T5's is 1e-4).
    """

    batch_kind = "texts with spans taken out"
    task = ENCODER_DECODER

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        for name, given in {"model.peft": self.peft, "model.backbone.compile": self.backbone.compile or None}.items():
            if given is not None:
                raise UserError(f"{name} does not go with SpanPretraining: leave it out.")
        super().check(datamodule)

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_spans`."""
        if "labels" not in batch:
            return batch
        config = base_model(self.model).config
        start = config.decoder_start_token_id
        return prepare_spans(batch, config.pad_token_id if start is None else start)

    def batch_loss(self, batch: dict[str, Any], z_loss: float = 0.0, label_smoothing: float = 0.0) -> TokenLoss:
        """See `spans_loss`."""
        return spans_loss(self.model, batch, z_loss, label_smoothing)

    def predict_step(self, batch: Any, batch_idx: int) -> NoReturn:
        """Raise `UserError`: what it writes are spans of a text that lacks them."""
        raise UserError(
            "SpanPretraining goes on from no prompt: transformers' `generate` of the folder model/last writes what is"
            " behind the sentinels of a text."
        )
