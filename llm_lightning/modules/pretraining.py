"""Causal pretraining: every token predicts the next one of its document."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from llm_lightning.models.generation import check_options
from llm_lightning.models.tokens import token_bytes
from llm_lightning.modules.prediction.tokens import TokenPrediction


class CausalPretraining(TokenPrediction):
    """Next-token prediction over packed rows.

    Args:
        generation: options of `model.generate` for `predict`; by default 64 tokens, each the most likely one.
        kwargs: see `TokenPrediction`; `z_loss` and `label_smoothing` are among them.
    """

    batch_kind = "texts"

    def __init__(self, *args: Any, generation: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation = {"max_new_tokens": 64, "do_sample": False} | (generation or {})
        self._token_bytes: Tensor | None = None

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        check_options(self.generation)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, str]]:
        """Continue each prompt: `prompt_ids` (B, T), left-padded, with their `attention_mask`."""
        prompts = batch["prompt_ids"]
        tokens = self.model.generate(
            input_ids=prompts,
            attention_mask=batch["attention_mask"],
            tokenizer=self.tokenizer,  # for `stop_strings`
            **{"pad_token_id": self.tokenizer.pad_token_id, "use_cache": True} | self.generation,
        )
        texts = self.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        replies = self.tokenizer.batch_decode(tokens[:, prompts.shape[1] :], skip_special_tokens=True)
        return [{"prompt": p, "continuation": r} for p, r in zip(texts, replies, strict=True)]

    def _num_bytes(self, targets: Tensor) -> Tensor:
        """UTF-8 bytes of the predicted tokens; 0 where there is no tokenizer to ask."""
        if self._token_bytes is None:
            table = token_bytes(self.tokenizer) if self.tokenizer is not None else torch.zeros(0)
            rows = self.model.config.get_text_config(decoder=True).vocab_size
            self._token_bytes = torch.nn.functional.pad(table, (0, max(0, rows - len(table)))).to(self.device)
        return self._token_bytes[targets].sum()
