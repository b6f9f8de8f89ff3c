"""Teachers that read more than their student: a system prompt, worked examples, or a text, before every document.

A student that learns from itself behind a context carries in its weights what the context told it (context
distillation: Askell et al., arXiv:2112.00861; Snell et al., arXiv:2209.15189). What teacher and student say is compared
token by token, so the teacher's row is made from the student's: the tokens that are trained are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jinja2 import TemplateError
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.attention import Documents
from llm_lightning.models.untrusted_text import UntrustedText
from llm_lightning.modules.distillation.documents import trained_documents
from llm_lightning.objectives.chunks import ROUNDING

Messages: TypeAlias = Sequence[Mapping[str, str]]

PROBES: Sequence[Messages] = [
    [{"role": "user", "content": "A question"}, {"role": "assistant", "content": "An answer."}],
    [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good day."}],
]
"""By the first it is found out where a context goes, by the second whether that is so for any conversation."""


class Context(NamedTuple):
    """What a teacher reads before every document.

    Args:
        tokens: (P,) int64, P >= 1.
        replaced: (H,) int64, what they replace where a document begins with it: a system prompt that the template
            writes by itself, or a BOS token.
    """

    tokens: Tensor
    replaced: Tensor

    @classmethod
    def of_conversations(cls, context: str | Messages, tokenizer: Any) -> "Context":
        """As a chat template writes it.

        Args:
            context: whole turns; a text is a system prompt.
            tokenizer: of the data.

        Raises:
            UserError: the template cannot write it, or not so that any conversation can follow.
        """
        turns = [{"role": "system", "content": context}] if isinstance(context, str) else context
        untrusted = UntrustedText(tokenizer)
        try:
            alone, behind = (
                [untrusted.conversation([dict(m) for m in (*before, *probe)], reply=False) for probe in PROBES]
                for before in ((), turns)
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise UserError(f"model.context: the chat template cannot write these turns: {error}") from error
        common = _common_end(alone[0], behind[0])
        replaced, tokens = (written[: len(written) - common] for written in (alone[0], behind[0]))
        if not tokens or alone[1][: len(replaced)] != replaced or tokens + alone[1][len(replaced) :] != behind[1]:
            raise UserError(
                "model.context: the chat template writes a conversation behind it otherwise than alone, so that the "
                "teacher's tokens are not the student's. End it with a whole turn of the assistant, or leave out its "
                "system prompt."
            )
        return cls(torch.tensor(tokens), torch.tensor(replaced, dtype=torch.int64))

    @classmethod
    def of_texts(cls, context: str, tokenizer: Any) -> "Context":
        """A text, behind what the tokenizer puts before every document."""
        bare, framed = (tokenizer("a", add_special_tokens=framed).input_ids for framed in (False, True))
        begin = framed[: next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)]
        text = UntrustedText(tokenizer).text(context)
        return cls(torch.tensor([*begin, *text]), torch.tensor(begin, dtype=torch.int64))

    def in_front_of(self, ids: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
        """What follows the context of a document.

        Args:
            ids: (n,) its tokens.
            trained: (m,) which of them are trained.

        Returns:
            Its own tokens, and (m,) where among them the trained ones are predicted, one before each; -1 is the
            context's last token.
        """
        header = len(self.replaced)
        # A trained token is kept, also in what would be replaced.
        if torch.equal(ids[:header], self.replaced) and int(trained[0]) >= header:
            return ids[header:], trained - 1 - header
        return ids, trained - 1

    def before(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as the teacher reads it: one row in which the context stands once, before the first document, and all
        others begin with it too.

        Args:
            batch: as the DataModules yield it, on the CPU.

        Returns:
            `input_ids`, `position_ids` (1, L), `documents`, and `target_positions` (N,), where in the row the same N
            tokens are predicted as in the student's batch, in the same order.
        """
        row, spans, places = list[Tensor](), list[list[int]](), list[Tensor]()
        context, end = len(self.tokens), 0
        for _, _, ids, trained in trained_documents(batch):
            own, before = self.in_front_of(ids, trained)
            begin, first = end, context if not spans else 0
            row += [self.tokens, own] if first else [own]
            end = begin + first + len(own)
            spans.append([0, begin, end, 0, 0 if first else context])
            # What the context itself predicts stands behind its last token.
            places.append(torch.where(before < 0, context - 1, begin + first + before))
        if padding := (-end % ROUNDING if spans else context):
            row.append(torch.zeros(padding, dtype=torch.int64) if spans else self.tokens)
            spans.append([0, end, end + padding, 0, 0])
            end += padding
        positions = [torch.arange(last - first, last + stop - start) for _, start, stop, first, last in spans]
        return {
            "input_ids": torch.cat(row)[None],
            "position_ids": torch.cat(positions)[None],
            "documents": Documents.of_spans(torch.tensor(spans), end),
            "target_positions": torch.cat(places or [torch.zeros(0, dtype=torch.int64)]),
        }


def read_context(context: str | Messages, tokenizer: Any, is_conversation: bool) -> Context:
    """What `model.context` is in tokens.

    Args:
        context: not empty.
        tokenizer: of the data.
        is_conversation: whether the data are conversations, else texts.

    Raises:
        UserError: there is no tokenizer that can write it, or texts are given turns.
    """
    if tokenizer is None or not tokenizer.is_fast:
        raise UserError("model.context: the data have no fast tokenizer (tokenizer.json) to write it with.")
    if is_conversation:
        return Context.of_conversations(context, tokenizer)
    if not isinstance(context, str):
        raise UserError("model.context: before texts stands a text; turns are for --data InstructionDataModule.")
    return Context.of_texts(context, tokenizer)


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both end with."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
