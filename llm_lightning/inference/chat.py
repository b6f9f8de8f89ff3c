"""A conversation with a model, as it is being written."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.rollouts.local_engine import LocalEngine
from llm_lightning.rollouts.sampling import Sampling
from llm_lightning_safety.files import make_folder, open_unlinked


class Turn(NamedTuple):
    """A reply.

    Args:
        text: of it.
        num_tokens: how many tokens it has.
        seconds: that it took, the reading of the conversation included.
        num_forgotten: messages that had to be left out of the conversation, for want of context.
    """

    text: str
    num_tokens: int
    seconds: float
    num_forgotten: int


@dataclass
class Conversation:
    """What was said, and how the next reply is drawn.

    Args:
        engine: holds the model.
        sampling: how tokens are drawn.
        seed: of all replies: the same conversation gets the same replies.
        system_prompt: stands before all.
    """

    engine: LocalEngine
    sampling: Sampling
    seed: int = 1
    system_prompt: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, text: str, show: Callable[[str], object]) -> Turn:
        """The reply to a text, which `show` gets piece by piece. Ctrl-C ends it, and what was written is kept.

        Raises:
            UserError: the text alone leaves no room for a reply; it is forgotten.
        """
        self.messages.append({"role": "user", "content": text})
        num_forgotten = self._forget()
        if (room := self.engine.room(self._all())) < 1:
            del self.messages[-1]
            raise UserError(
                f"This text takes all of the model's context of {self.engine.context_length:,} tokens: write less."
            )
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        streamer = _streamer(self.engine.tokenizer, show)
        shown = 0

        def stream(tokens: Tensor) -> None:
            nonlocal shown
            streamer.put(tokens[shown:])
            shown = len(tokens)

        started = time.perf_counter()
        reply = self.engine.reply(self._all(), sampling, (self.seed, len(self.messages)), stream)
        with suppress(KeyboardInterrupt):
            streamer.end()
        self.messages.append({"role": "assistant", "content": reply.text})
        return Turn(reply.text, reply.num_tokens, time.perf_counter() - started, num_forgotten)

    def save(self, path: Path) -> None:
        """Append the conversation to a .jsonl file, as fine-tuning reads it."""
        make_folder(path.parent)
        with open_unlinked(path, "a") as file:
            file.write(json.dumps({"messages": self._all()}) + "\n")

    def _all(self) -> list[dict[str, Any]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, *self.messages]

    def _forget(self) -> int:
        """Leave out the oldest question and its reply until half of the context, or all of the reply, has room."""
        wanted, num_forgotten = min(self.sampling.max_new_tokens, self.engine.context_length // 2), 0
        while self.engine.room(self._all()) < wanted and len(self.messages) > 1:
            del self.messages[:2]
            num_forgotten += 2
        return num_forgotten


def _streamer(tokenizer: Any, show: Callable[[str], object]) -> Any:
    """Turns tokens into text that can be shown: whole words, and no special tokens."""
    from transformers import TextStreamer

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    return Shown(tokenizer, skip_special_tokens=True)
