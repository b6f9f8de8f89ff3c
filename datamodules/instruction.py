"""Conversations for supervised fine-tuning: any instruction data to packed rows with a loss on replies alone."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.chat import ChatDataModule
from datamodules.encoding.conversations import ChatEncoder
from datamodules.encoding.tokenizer import bare
from datamodules.packed import Packed
from datamodules.records.conversations import Reasoning
from datamodules.serving.collate import Piece
from datamodules.serving.dataset import DocumentPrompts, Documents
from datamodules.storage.rows import TooLong
from datamodules.templates.chat_template import Turns, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class InstructionDataModule(ChatDataModule):
    """Learns from conversations: finds out how the records hold them, writes them down by the chat template, and packs
    them into full rows in which every conversation sees itself alone.

    Read are .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders and globs of them, the embedded pairs
    `python_pairs`, and data sets of the Hugging Face hub. A record is a list of messages (`messages`, ShareGPT's
    `conversations`), an Alpaca `instruction`, a `prompt` with its `completion`, or a `question` with its `answer`.
    By default 0.01 of the conversations validate.

    Args:
        turns: what is trained on: every reply (`assistant`), the `last` one, or `all` of the text.
        reasoning: what becomes of the thoughts before a reply: `train`, `mask` (read, not in the loss) or `drop`.
        too_long: what becomes of a conversation longer than a row: `drop` leaves it out, `left` and `right` cut off its
            beginning or its end, `split` cuts it into several rows. All are counted. By default it is left out, since a
            reply without its question or its end teaches something else.
        args, kwargs: see `ChatDataModule`.
    """

    batch_kind = "conversations"

    def __init__(
        self,
        *args: Any,
        turns: Turns = "assistant",
        reasoning: Reasoning = "train",
        too_long: TooLong = "drop",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.turns = turns
        self.reasoning = reasoning
        self.too_long = too_long

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Conversations by the chat template."""
        template = template_of(self.chat_tokenizer)
        own = {"turns": self.turns, "reasoning": self.reasoning}
        return ChatEncoder(bare(self.chat_tokenizer), **(vars(template) | own))

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """A reply ends with the end of a turn, so that is where whoever loads the model has to stop."""
        tokenizer.eos_token = template_of(tokenizer).end_of_turn()

    def make_prompts(self, sources: Packed) -> DocumentPrompts:
        """The conversations up to their last reply."""
        return DocumentPrompts(Documents(sources), prompt_of)

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first validation prompts (training's where there are none), for samples in passing."""
        prompts = self.make_prompts(self._val or self._train)
        return [prompts[number].tolist() for number in range(min(count, len(prompts)))]

    def in_words(self, counts: dict[str, float]) -> str:
        """What there is to train on, and what packing did to it."""
        too_long = f"{counts['num_too_long']:,} longer than a row (too_long={self.too_long})"
        return (
            f"{counts['num_documents']:,} conversations, {counts['num_tokens']:,} tokens, {counts['trained_share']:.1%}"
            f" of them in the loss, in {counts['num_rows']:,} rows of {self.seq_len:,};"
            f" {counts['padded_share']:.2%} padded; {too_long if counts['num_too_long'] else 'none longer than a row'}"
        )


def prompt_of(conversation: Piece) -> np.ndarray:
    """The ids of a conversation before its last trained reply, whose thoughts are the model's to find."""
    return conversation.ids[: conversation.prompt]
