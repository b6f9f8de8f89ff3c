"""Chat templates: how a conversation is written down, and which characters of it the model learns to write.

Stock templates do not mark what an assistant said, so it is found by rendering prefixes: what a template writes for the
turns before a reply, with the prompt to reply, is what the model will see when it has to reply; what the template
writes after that is what it has to learn. Where a template rewrites earlier turns once more turns follow (reasoning
models drop the thoughts of earlier replies), no single text has this property for all replies; then a reply becomes a
document of its own, which ends with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from datamodules.errors import DataError
from datamodules.records.conversations import Conversation, Reasoning
from datamodules.records.own_keys import OwnKey, own_keys, unwritten, without
from datamodules.sources.units import Bad
from datamodules.templates.choice import NAMES, TOOL_USE, find_template
from datamodules.templates.control_tokens import ControlTokens, is_mark, normalizer_of, where
from datamodules.templates.limits import CostError, bounded, check_length
from datamodules.templates.probe import (
    Aim,
    Probe,
    Rendered,
    UnwritableError,
    first_lacking,
    rendered,
    untold_role,
    used_tokens,
)
from datamodules.templates.skeleton import Skeleton, skeleton_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
NO_THOUGHTS = re.compile(r"\s*<think>\s*</think>\s*")

Turns = Literal["assistant", "last", "all"]
Tools: TypeAlias = list[dict[str, Any]] | None

MOST_PROBES = 4096  # forms of conversations that are remembered


@dataclass(frozen=True)
class ChatTemplate:
    """Writes conversations down and knows what of them is in the loss.

    A conversation is refused of which the template leaves something out, or which spells a control token; see
    `template_probe` and `control_tokens`.

    Args:
        jinja: the template.
        names: what it may name beside the messages: `bos_token`, `eos_token` and such.
        special: the texts of the tokenizer's special tokens.
        turns: what is trained on: every reply of the assistant, the last one, or all there is.
        reasoning: whether thoughts are in the loss (`train`) or only read (`mask`); `drop` took them out before.
        added: the texts of the tokenizer's other added tokens.
        normalizer: the tokenizer's, as JSON; empty for none.
        tool_jinja: the template of conversations with tools, where that is another one.
    """

    jinja: str
    names: dict[str, str]
    special: list[str]
    turns: Turns = "assistant"
    reasoning: Reasoning = "train"
    added: list[str] = field(default_factory=list)
    normalizer: str = ""
    tool_jinja: str | None = None

    def render(self, conversation: Conversation) -> list[Rendered] | Bad:
        """The documents of a conversation, one as a rule; see the module's text for when there are more."""
        wanted = [i for i, trainable in enumerate(conversation.trainable) if trainable]
        if not wanted:
            return Bad("no turn is to be trained on")
        return self._checked(conversation, Aim("learn", tuple(wanted[-1:] if self.turns == "last" else wanted)))

    def write(self, messages: list[dict[str, Any]], tools: Tools) -> str | Bad:
        """A conversation as the template writes it, to its end."""
        written = self._checked(Conversation(messages, [False] * len(messages), tools), Aim("read"))
        return written if isinstance(written, Bad) else written[0].text

    def replies(self, text: str, messages: list[dict[str, Any]], tools: Tools, first: int) -> Rendered | Bad:
        """A conversation that `write` wrote, with where the assistant's turns from the turn `first` on are in it.

        The last reply begins where the text departs from what prompts for it. An earlier one that the template writes
        otherwise once more turns follow is left out.
        """
        conversation, spans, prompt = Conversation(messages, [False] * len(messages), tools), [], ""
        try:
            with bounded():
                for turn in (i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"):
                    prompt = self._prompt(conversation, turn)
                    span = self._span(conversation, turn, text, prompt)
                    if span is None and turn == len(messages) - 1:
                        span = _first_difference(text, prompt), len(text.rstrip())
                    spans += [] if span is None else [span]
        except UnwritableError as error:
            return Bad(f"the chat template {error}")
        except CostError as error:
            return Bad(f"the chat template costs too much: {error}")
        return Rendered(text, spans, len(prompt))

    def prompt(self, messages: list[dict[str, Any]], tools: Tools = None) -> str | Bad:
        """What a model reads before it has to reply to these messages."""
        written = self._checked(Conversation(messages, [False] * len(messages), tools), Aim("reply"))
        return written if isinstance(written, Bad) else written[0].text

    def unread(self, messages: list[dict[str, Any]], tools: Tools = None) -> set[str]:
        """The keys of a conversation's turns and calls of which the template writes nothing, once it was written."""
        if not own_keys(messages):
            return set()  # as nearly always, and to bound what a template costs takes longer than to look
        with bounded():
            return set(map(str, self._unread(Conversation(messages, [False] * len(messages), tools))))

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

    def _checked(self, conversation: Conversation, aim: Aim) -> list[Rendered] | Bad:
        try:
            with bounded():
                unread = self._unread(conversation)
                if mistaken := next((key for key in unread if key.meant), None):
                    return Bad(
                        f"the chat template writes nothing of {str(mistaken)!r} in a turn of the {mistaken.role};"
                        f" call it {mistaken.meant}, or take it out"
                    )
                conversation = replace(conversation, messages=without(conversation.messages, unread))
                skeleton = skeleton_of(conversation)
                if forged := self._forged(conversation, skeleton):
                    return forged
                documents = self._write(conversation, aim)
                if isinstance(documents, Bad):
                    return documents
                check_length(documents[-1].text, sum(len(part.text) for part in skeleton.parts))
                return self._unfaithful(conversation, skeleton, documents, aim) or documents
        except UnwritableError as error:
            return Bad(f"the chat template {error}")
        except CostError as error:
            return Bad(f"the chat template costs too much: {error}")
        except RecursionError:
            return Bad("JSON nested too deeply")

    def _unread(self, conversation: Conversation) -> list[OwnKey]:
        """Found for all conversations of one form at once."""
        if not own_keys(conversation.messages):
            return []
        form = skeleton_of(conversation, keep_names=True).conversation
        key = json.dumps([form.messages, form.tools])
        if key not in self._keys:
            if len(self._keys) >= MOST_PROBES:
                self._keys.clear()
            try:
                self._keys[key] = self._unwritten(form)
            except UnwritableError:
                self._keys[key] = self._unwritten(conversation)
        return self._keys[key]

    def _unwritten(self, conversation: Conversation) -> list[OwnKey]:
        def write(messages: list[dict[str, Any]]) -> str:
            return self._text(replace(conversation, messages=messages), len(messages))

        return unwritten(conversation.messages, write)

    def _write(self, conversation: Conversation, aim: Aim) -> list[Rendered] | Bad:
        if aim.what == "learn":
            return self._learnable(conversation, aim.turns)
        return [Rendered(self._text(conversation, len(conversation.messages), reply=aim.what == "reply"), [])]

    def _learnable(self, conversation: Conversation, wanted: Sequence[int]) -> list[Rendered] | Bad:
        whole = self._text(conversation, len(conversation.messages))
        if self.turns == "all":
            prompt = self._prompt(conversation, wanted[-1])
            return [Rendered(whole, [(0, len(whole))], len(prompt))]
        return self._documents(conversation, whole, wanted)

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
                closing = self._closing(text[start:end])
                if closing is None:
                    return Bad(
                        f"the chat template ends a reply with {text[end - 4 : end]!r}: its end is never in the loss"
                    )
                if self._is_for_tools(conversation) and closing != self.names.get("eos_token"):
                    return Bad(f"the template {TOOL_USE!r} ends a reply with {closing!r}, at which no model would stop")
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
        jinja = (self.tool_jinja or "") if self._is_for_tools(conversation) else self.jinja
        return rendered(jinja, conversation.messages[:num_messages], conversation.tools, reply, self.names)

    def _is_for_tools(self, conversation: Conversation) -> bool:
        """Whether the template for tools writes it, by transformers' rule."""
        return self.tool_jinja is not None and bool(conversation.tools)

    def _closing(self, text: str) -> str | None:
        return next((token for token in self.special if text.endswith(token)), None)

    def _forged(self, conversation: Conversation, skeleton: Skeleton) -> Bad | None:
        """A text that spells a control token would end a turn or open one."""
        found = self._control.spelled(skeleton.parts, [message["role"] for message in conversation.messages])
        if found is None:
            return None
        kind = "special" if found.is_special else "control"
        normalized = "" if found.as_written else ", once the tokenizer has normalized it"
        return Bad(f"{where(found.part)} spells the {kind} token {found.token!r}{normalized}")

    def _unfaithful(
        self, conversation: Conversation, skeleton: Skeleton, documents: list[Rendered], aim: Aim
    ) -> Bad | None:
        """What the template leaves out, or makes a control token of."""
        probe = self._probe(skeleton, aim)
        if probe.lacking or probe.tokens is None:
            skeleton = skeleton_of(conversation, keep_names=True)
            probe = self._probe(skeleton, aim)
        if reason := probe.reason(skeleton.parts, [document.text for document in documents]):
            return Bad(f"the chat template {reason}")
        found = [token for document in documents for token in self._control.sequence(document.text)]
        if found == probe.tokens or probe.tokens is None:
            return None
        joined = self._control.joined(skeleton.parts, found, probe.tokens)
        return Bad(f"{where(joined[0])} makes the token {joined[1]!r} with what stands beside it") if joined else None

    def _probe(self, skeleton: Skeleton, aim: Aim) -> Probe:
        """What the template does with all conversations of one form: looked at once."""
        key = (aim, json.dumps(skeleton.conversation.messages), json.dumps(skeleton.conversation.tools))
        if key not in self._probes:
            if len(self._probes) >= MOST_PROBES:
                self._probes.clear()
            self._probes[key] = self._probed(skeleton, aim)
        return self._probes[key]

    def _probed(self, skeleton: Skeleton, aim: Aim) -> Probe:
        conversation = skeleton.conversation
        try:
            documents = self._write(conversation, aim)
        except UnwritableError:
            return Probe(None, None)
        if isinstance(documents, Bad):
            return Probe(None, None)
        tokens = [token for document in documents for token in self._control.sequence(document.text)]
        lacking = first_lacking(skeleton.parts, conversation.messages, documents, aim)
        return Probe(lacking or untold_role(conversation, self._text, self._told), tokens)

    @cached_property
    def _probes(self) -> dict[Any, Probe]:
        return {}

    @cached_property
    def _keys(self) -> dict[str, list[OwnKey]]:
        return {}

    @cached_property
    def _told(self) -> set[tuple[str, ...]]:
        return set()

    @cached_property
    def _control(self) -> ControlTokens:
        marks = [token for token in self.added if is_mark(token) and token not in self.special]
        used = used_tokens(marks, self.jinja + (self.tool_jinja or ""), self._text) if marks else ([], [])
        return ControlTokens(self.special, *used, self.normalizer)


def template_of(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The tokenizer's own template, with what it may name and what a text must not spell."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    special = {text for text, is_special in added.items() if is_special} | set(tokenizer.all_special_tokens)
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    own = tokenizer.chat_template
    return ChatTemplate(
        find_template(tokenizer, None),
        names,
        sorted(special),
        added=sorted(added.keys() - special),
        normalizer=normalizer_of(tokenizer.backend_tokenizer),
        tool_jinja=own.get(TOOL_USE) if isinstance(own, dict) else None,
    )


def _first_difference(text: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
