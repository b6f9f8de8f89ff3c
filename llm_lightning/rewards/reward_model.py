"""A trained reward model as a reward: it reads texts with a tokenizer of its own."""

import json
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.examination.examination import examined
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.models.untrusted_text import UntrustedText
from llm_lightning.rewards.scoring import Columns, Prompt


class RewardModel:
    """What a reward model, such as `RewardModeling` leaves behind, thinks of prompt and completion together.

    Args:
        path: folder or hub id of an `AutoModelForSequenceClassification` with one label, and its tokenizer. Where the
            tokenizer has a chat template, prompt and completion become turns of a conversation; else one text. Control
            tokens that are spelled in these texts are read as plain text: no completion can write a turn of its own.
            The template is given what the column `tools` holds, where the data has one: schemas, or their JSON.
        batch_tokens: tokens of one forward pass, padding included; completions of similar length go together.
        device: by default the current GPU, where there is one.
        scale: factor on the scores, offset: added to them after that.
    """

    def __init__(
        self,
        path: str,
        batch_tokens: int = 8192,
        device: str | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        self.path = path
        self.batch_tokens = batch_tokens
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.scale = scale
        self.offset = offset

    @cached_property
    def tokenizer(self) -> Any:
        """The reward model's own tokenizer, not the policy's."""
        from transformers import AutoTokenizer

        return self._read(AutoTokenizer)

    @cached_property
    def _untrusted(self) -> UntrustedText:
        try:
            return UntrustedText(self.tokenizer)
        except TypeError as error:
            raise UserError(f"RewardModel.path={self.path!r}: {error}.") from error

    @cached_property
    def model(self) -> Any:
        """The network, read at the first use."""
        from transformers import AutoModelForSequenceClassification

        model = self._read(AutoModelForSequenceClassification, dtype="auto", use_safetensors=True)
        if model.config.num_labels != 1:
            raise UserError(f"RewardModel.path={self.path!r} has {model.config.num_labels} labels; a reward is one.")
        model = model.to(self.device).eval().requires_grad_(False)
        return examined(model) if hasattr(model, "score") else model

    def _read(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.path, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"RewardModel.path={self.path!r} cannot be read as a reward model: {error}") from error

    def check(self) -> None:
        """Read config and tokenizer, so that a wrong path is known before training begins; raises `UserError`."""
        from transformers import AutoConfig

        self._read(AutoConfig)
        _ = self._untrusted

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        tools = columns.get("tools") or [None] * len(prompts)
        rows = [self._encode(*one) for one in zip(prompts, completions, tools, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        while order:
            # The longest comes first: if the memory suffices for its batch, it suffices for all.
            count = max(1, self.batch_tokens // len(rows[order[-1]]))
            chosen, order = order[-count:], order[:-count]
            for i, value in zip(chosen, self._scores([rows[i] for i in chosen]).tolist(), strict=True):
                scores[i] = self.scale * value + self.offset
        return scores

    def _encode(self, prompt: Prompt, completion: str, tools: Any = None) -> list[int]:
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            turns.append({"role": "assistant", "content": completion})
            schemas = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or None
            ids = self._untrusted.conversation(turns, reply=False, tools=schemas)
        elif isinstance(prompt, str):
            ids = self._untrusted.document(prompt + completion, num_trusted=len(prompt))
        else:
            raise UserError(
                f"RewardModel.path={self.path!r} has no chat template, and the prompts are conversations: save one "
                "with its tokenizer, or give prompts of plain text."
            )
        longest = getattr(self.model.config, "max_position_embeddings", None)
        # What is too long loses its beginning: the completion is at the end.
        return ids[-longest:] if longest else ids

    def _scores(self, rows: list[list[int]]) -> Tensor:
        """(B,) float32 of texts, padded on the right."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        batch = {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(width, device=self.device) < lengths[:, None]).long(),
        }
        if not hasattr(self.model, "score"):  # encoders pool by themselves
            return self.model(**batch).logits[:, 0].float()
        return rewards(self.model, prepare_texts(batch))["ends"]
