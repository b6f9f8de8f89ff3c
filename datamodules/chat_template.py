"""Chat templates: how a conversation is written down, and which characters of it the model learns to write.

Stock templates do not mark what an assistant said, so it is found by rendering prefixes: what a template writes for the
turns before a reply, with the prompt to reply, is what the model will see when it has to reply; what the template
writes after that is what it has to learn. Where a template rewrites earlier turns once more turns follow (reasoning
models drop the thoughts of earlier replies), no single text has this property for all replies; then a reply becomes a
document of its own, which ends with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from datamodules.errors import DataError
from datamodules.records import Conversation, Reasoning
from datamodules.units import Bad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")

FOLDER = Path(__file__).parent / "templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
CHATML_TOKENS = {"<|im_start|>", "<|im_end|>"}

THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
NO_THOUGHTS = re.compile(r"\s*<think>\s*</think>\s*")

Turns = Literal["assistant", "last", "all"]


class Rendered(NamedTuple):
    """A document of a conversation.

    Args:
        text: as the template writes it.
        spans: (start, end) in characters of what is learned.
        prompt: characters before the last of the learned replies begins, its thoughts included.
    """

    text: str
    spans: list[tuple[int, int]]
    prompt: int = 0


def find_template(tokenizer: PreTrainedTokenizerFast, wanted: str | None) -> str:
    """The Jinja text of a chat template.

    Args:
        tokenizer: what it has itself is taken where nothing is wanted.
        wanted: a name (`chatml`, `llama3`, `mistral`), or a file.

    Raises:
        DataError: there is no such template, or none is wanted and the tokenizer has none.
    """
    known = ", ".join(NAMES)
    if wanted is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if own:
            return own
        if tokenizer.get_vocab().keys() >= CHATML_TOKENS:
            return (FOLDER / "chatml.jinja").read_text()
        raise DataError(f"template: the tokenizer has no chat template; name one of {known}, or a file")
    if wanted in NAMES:
        return (FOLDER / f"{wanted}.jinja").read_text()
    if Path(wanted).expanduser().is_file():
        return Path(wanted).expanduser().read_text(encoding="utf-8")
    raise DataError(f"template: {wanted!r} is neither a file nor one of {known}")


def set_template(tokenizer: PreTrainedTokenizerFast, wanted: str | None) -> None:
    """Let a tokenizer write conversations by `find_template`.

    Templates that it has beside its own (`tool_use`, `rag`) stay; one that is wanted takes the place of them all, since
    they end a turn in their own way.
    """
    jinja, own = find_template(tokenizer, wanted), tokenizer.chat_template
    tokenizer.chat_template = own | {"default": jinja} if wanted is None and isinstance(own, dict) else jinja


@dataclass(frozen=True)
class ChatTemplate:
    """Writes conversations down and knows what of them is learned.

    Args:
        jinja: the template.
        names: what it may name beside the messages: `bos_token`, `eos_token` and such.
        special: the texts of the tokenizer's special tokens.
        turns: what is learned: every reply of the assistant, the last one, or all there is.
        reasoning: whether thoughts are learned (`train`) or only read (`mask`); `drop` took them out before.
    """

    jinja: str
    names: dict[str, str]
    special: list[str]
    turns: Turns = "assistant"
    reasoning: Reasoning = "train"

    def render(self, conversation: Conversation) -> list[Rendered] | Bad:
        """The documents of a conversation, one as a rule; see the module's text for when there are more."""
        if forged := self._forged(conversation.messages):
            return forged
        wanted = [i for i, trainable in enumerate(conversation.trainable) if trainable]
        if not wanted:
            return Bad("no turn is to be learned")
        return self._guarded(lambda: self._learnable(conversation, wanted))

    def write(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | Bad:
        """A conversation as the template writes it, to its end."""
        if forged := self._forged(messages):
            return forged
        conversation = Conversation(messages, [False] * len(messages), tools)
        return self._guarded(lambda: self._text(conversation, len(messages)))

    def prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str | Bad:
        """What a model reads before it has to reply to these messages."""
        if forged := self._forged(messages):
            return forged
        conversation = Conversation(messages, [False] * len(messages), tools)
        return self._guarded(lambda: self._text(conversation, len(messages), reply=True))

    def end_of_turn(self) -> str:
        """The special token that ends a reply, with `turns` other than `all`.

        Raises:
            DataError: the template writes none, so that a model would never learn to stop; or it writes two BOS.
        """
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        rendered = self.render(Conversation(messages, [False, True]))
        if isinstance(rendered, Bad):
            raise DataError(
                f"template: {rendered.reason}; choose another one (built in: {', '.join(NAMES)}, or a file)"
            )
        text, bos = rendered[-1].text, self.names.get("bos_token")
        if bos and text.startswith(bos * 2):
            raise DataError(f"template: it writes {bos!r} twice; take one of them out")
        start, end = rendered[-1].spans[-1]
        found = self._closing(text[start:end])
        assert found is not None
        return found

    def _guarded(self, rendering: Callable[[], T]) -> T | Bad:
        from jinja2 import TemplateError

        try:
            return rendering()
        except TemplateError as error:
            return Bad(f"the chat template refuses it: {error}")
        except (TypeError, KeyError, AttributeError) as error:  # an expression of the template on unexpected values
            return Bad(f"the chat template cannot write it: {error}")

    def _learnable(self, conversation: Conversation, wanted: Sequence[int]) -> list[Rendered] | Bad:
        whole = self._text(conversation, len(conversation.messages))
        if self.turns == "all":
            prompt = self._prompt(conversation, wanted[-1])
            return [Rendered(whole, [(0, len(whole))], len(prompt))]
        return self._documents(conversation, whole, wanted[-1:] if self.turns == "last" else wanted)

    def _documents(self, conversation: Conversation, whole: str, wanted: Sequence[int]) -> list[Rendered] | Bad:
        together, documents = Rendered(whole, []), []
        for turn in wanted:
            prompt = self._prompt(conversation, turn)
            if span := self._span(conversation, turn, whole, prompt):
                together = Rendered(whole, [*together.spans, span], len(prompt))
                continue
            text = self._text(conversation, turn + 1)
            if not (span := self._span(conversation, turn, text, prompt)):
                return Bad(f"the chat template writes turn {turn + 1} otherwise than it prompts for it")
            documents.append(Rendered(text, [span], len(prompt)))
        documents = [*documents, together] if together.spans else documents
        for text, spans, _ in documents:
            for start, end in spans:
                if self._closing(text[start:end]) is None:
                    return Bad(f"the chat template ends a reply with {text[end - 4 : end]!r}: its end is never learned")
        return documents

    def _span(self, conversation: Conversation, turn: int, text: str, prompt: str) -> tuple[int, int] | None:
        """Where in the text a reply is; None where the text does not begin as the reply is prompted for."""
        is_last = turn == len(conversation.messages) - 1
        through = self._text(conversation, turn + 1) if not is_last else text
        if len(through) > len(text) or not (text.startswith(prompt) and text.startswith(through)):
            return None
        start, end = len(prompt), len(through.rstrip())
        skipped = (THOUGHTS if self.reasoning == "mask" else NO_THOUGHTS).match(text, start, end)
        start = skipped.end() if skipped else start
        return (start, end) if start < end else None

    def _prompt(self, conversation: Conversation, turn: int) -> str:
        """What the model sees when it has to write this turn."""
        return self._text(conversation, turn, reply=True)

    def _text(self, conversation: Conversation, num_messages: int, reply: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        options: dict[str, Any] = {"tools": conversation.tools, "add_generation_prompt": reply, **self.names}
        messages = conversation.messages[:num_messages]
        return render_jinja_template([messages], chat_template=self.jinja, **options)[0][0]

    def _closing(self, text: str) -> str | None:
        return next((token for token in self.special if text.endswith(token)), None)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        # Thoughts are written with tokens that some vocabularies call special.
        tokens = [re.escape(token) for token in self.special if token not in ("<think>", "</think>")]
        return re.compile("|".join(tokens)) if tokens else None

    def _forged(self, messages: Sequence[dict[str, Any]]) -> Bad | None:
        """A text that spells a special token would end a turn or open one."""
        for number, message in enumerate(messages, start=1):
            if self._special and (found := self._special.search(message.get("content") or "")):
                return Bad(f"turn {number} spells the special token {found[0]!r}")
        return None
