"""From pairs of conversations to token ids: what both have in common once, then the rest of each.

A single answer is a pair of which one side is missing: its prompt, then the answer as the chosen or the rejected one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.conversations import trained_tokens
from datamodules.encoding.cutting import Cut, cut_pair, cut_single
from datamodules.records.preferences import IDENTICAL, Preference, preference_of, preferences_of
from datamodules.records.record_source import ChatRecord
from datamodules.records.single_answers import SingleAnswer, is_single, single_answer_of
from datamodules.sources.bad_records import BadRecords, LeftOut
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit
from datamodules.storage.hashing import text_hash
from datamodules.storage.near_duplicates import NUM_BANDS, normalized, signature
from datamodules.storage.shards import Document, token_dtype
from datamodules.templates.chat_template import ChatTemplate
from datamodules.templates.probe import Rendered

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKEN = np.dtype([("id", "<u4"), ("trained", "?")])
"""With whether it belongs to an answer, whose probability preference optimization moves; rewards do not look at it."""

# What is known of a pair beside its tokens: how many both responses share and how many are the chosen one's own, and by
# how much and with which scores it was preferred; NaN where there are no scores. Of a single answer what is shared is
# its prompt, and nothing is the missing response's own.
PAIR = np.dtype(
    [
        ("shared", "<u4"), ("chosen", "<u4"), ("is_tie", "?"), ("margin", "<f4"),
        ("chosen_score", "<f4"), ("rejected_score", "<f4"), ("bands", "<u8", (NUM_BANDS,)),
    ]
)  # fmt: skip

NO_ANSWER = LeftOut("of which the length of a row leaves no answer")


class WrittenPair(NamedTuple):
    """A pair as the template writes it, with where the answers are: all replies behind what both have in common."""

    preference: Preference
    chosen: Rendered
    rejected: Rendered

    @property
    def sides(self) -> tuple[Rendered, ...]:
        """What there is to tokenize."""
        return self.chosen, self.rejected


class WrittenSingle(NamedTuple):
    """A single answer as the template writes it, with where all replies behind its prompt are."""

    answer: SingleAnswer
    rendered: Rendered

    @property
    def sides(self) -> tuple[Rendered, ...]:
        """What there is to tokenize."""
        return (self.rendered,)


Written: TypeAlias = WrittenPair | WrittenSingle


class PairEncoder:
    """Turns preferences into documents of three parts: shared tokens, the chosen response's and the rejected one's own.

    Args:
        tokenizer: a copy of its own.
        longest: tokens of a row.
        too_long: what becomes of a pair that fits no row: `drop` leaves that to the packing, `left` cuts off the
            beginning of the prompt, `right` the ends of the responses.
        least_shared: prompts with fewer tokens in common stand before each response.
        labels: see `preference_of`.
        score_margins: whether the difference of the scores is the margin.
        template: fields of a `ChatTemplate`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        longest: int,
        too_long: Cut,
        least_shared: int,
        labels: dict[str, str],
        score_margins: bool,
        template: dict[str, Any],
    ) -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self.too_long = too_long
        self.least_shared = least_shared
        self.labels = labels
        self.score_margins = score_margins
        self.template = ChatTemplate(**template)

    @cached_property
    def dtype(self) -> np.dtype:
        """Of token ids on disk."""
        return token_dtype(self.tokenizer)

    def settings(self) -> dict[str, Any]:
        """What another process needs to make the same encoder around the same tokenizer; JSON."""
        # Without cutting, the same tokens serve rows of any length.
        longest = 0 if self.too_long == "drop" else self.longest
        return {
            "longest": longest, "too_long": self.too_long, "least_shared": self.least_shared, "labels": self.labels,
            "score_margins": self.score_margins, "template": asdict(self.template),
        }  # fmt: skip

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The unit's pairs, streaming; what says nothing is left out and counted."""
        for batch in bounded_batches(self.written(unit, bad), lambda one: sum(len(side.text) for side in one.sides)):
            written = [rendered for one in batch for rendered in one.sides]
            encodings = self.tokenizer.encode_batch([one.text for one in written], add_special_tokens=False)
            tokens = (tokens_of(encoding, one) for encoding, one in zip(encodings, written, strict=True))
            for one in batch:
                document = self._document(one, *islice(tokens, len(one.sides)))
                if isinstance(document, LeftOut):
                    bad.left_out[document.reason] += 1
                else:
                    yield document

    def written(self, unit: Unit, bad: BadRecords) -> Iterator[Written]:
        """The unit's pairs or single answers as the template writes them."""
        for place, record in records(unit):
            found = self._preferences(record, unit)
            for one in found if isinstance(found, list) else [found]:
                written = one if isinstance(one, (Bad, LeftOut)) else self._write(one)
                if isinstance(written, Bad):
                    bad.note(place, written)
                    break
                if isinstance(written, LeftOut):
                    bad.left_out[written.reason] += 1
                else:
                    bad.unread.update(self._unread(written[0]))
                    yield written

    def read(self, unit: Unit) -> Iterator[ChatRecord]:
        """The unit's pairs or single answers, without those that cannot be read, say nothing, or are ties."""
        for _, record in records(unit):
            if isinstance(record, Bad):
                continue
            found = self._preferences(record, unit)
            for one in found if isinstance(found, list) else []:
                if isinstance(one, SingleAnswer):
                    yield ChatRecord(record, one.messages, None, _split_hash(one))
                elif not one.is_tie:
                    yield ChatRecord(record, one.chosen, str(one.rejected[-1]["content"]), _split_hash(one))

    def refuses(self, messages: list[dict[str, Any]], rejected: str | None) -> str | None:
        """Why the last message and a rejected one in its place cannot be trained on; None where it can."""
        record = {"messages": messages[:-1], "chosen": messages[-1]["content"], "rejected": rejected}
        preference = preference_of(record, "messages-pair", None)
        written = self._write(preference) if isinstance(preference, Preference) else preference
        return written.reason if isinstance(written, (Bad, LeftOut)) else None

    def _preferences(self, record: Any, unit: Unit) -> list[Preference] | list[SingleAnswer] | Bad | LeftOut:
        if isinstance(record, Bad):
            return record
        if not is_single(unit.shape):
            return preferences_of(record, unit.shape, unit.columns, self.labels)
        found = single_answer_of(record, unit.shape, unit.columns, self.labels)
        return [found] if isinstance(found, SingleAnswer) else found

    def _write(self, said: Preference | SingleAnswer) -> Written | Bad:
        first, found = _first_reply(said), []
        for messages in _responses(said):
            text = self.template.write(messages, said.tools)
            written = text if isinstance(text, Bad) else self.template.replies(text, messages, said.tools, first)
            if isinstance(written, Bad):
                return written
            found.append(written)
        return WrittenSingle(said, *found) if isinstance(said, SingleAnswer) else WrittenPair(said, *found)

    def _unread(self, said: Preference | SingleAnswer) -> set[str]:
        return set().union(*(self.template.unread(messages, said.tools) for messages in _responses(said)))

    def _document(self, one: Written, *tokens: np.ndarray) -> Document | LeftOut:
        return self._single(one, *tokens) if isinstance(one, WrittenSingle) else self._pair(one, *tokens)

    def _single(self, one: WrittenSingle, tokens: np.ndarray) -> Document | LeftOut:
        cut = cut_single(tokens, _first_trained(tokens), self.longest, self.too_long)
        if isinstance(cut, LeftOut):
            return cut
        cut["trained"][:1] = False  # nothing predicts it
        if not cut["trained"].any():
            return NO_ANSWER
        details = np.zeros((), PAIR)
        details["shared"] = num_prompt = _first_trained(cut)
        details["chosen"] = len(cut) - num_prompt if one.answer.is_desirable else 0
        details["chosen_score"] = details["rejected_score"] = np.nan
        return self._of_tokens(one, one.answer, cut, details)

    def _pair(self, one: WrittenPair, chosen: np.ndarray, rejected: np.ndarray) -> Document | LeftOut:
        if np.array_equal(chosen["id"], rejected["id"]):
            return IDENTICAL
        shared = common_prefix(chosen, rejected)
        if shared < self.least_shared:
            shared = 0
        whole = (chosen[:shared], chosen[shared:], rejected[shared:])
        parts = cut_pair(whole, common_prefix(chosen, rejected), self.longest, self.too_long)
        if isinstance(parts, LeftOut):
            return parts
        first, *others = parts
        for beginning in (first,) if len(first) else others:
            beginning["trained"][:1] = False  # nothing predicts it
        if not all((first["trained"].any() or own["trained"].any()) for own in others):
            return NO_ANSWER
        tokens = np.concatenate(parts)
        preference = one.preference
        details = np.zeros((), PAIR)
        details["shared"], details["chosen"], details["is_tie"] = len(parts[0]), len(parts[1]), preference.is_tie
        details["chosen_score"], details["rejected_score"] = preference.scores
        details["margin"] = self._margin(preference)
        return self._of_tokens(one, preference, tokens, details)

    def _of_tokens(
        self, one: Written, said: Preference | SingleAnswer, tokens: np.ndarray, details: np.ndarray
    ) -> Document:
        details["bands"] = signature("\n".join(message.get("content") or "" for message in said.prompt))
        num_bytes = sum(len(side.text.encode()) for side in one.sides)
        ids = tokens["id"].astype(self.dtype)
        return Document(ids, tokens["trained"], num_bytes, _split_hash(said), details=details.tobytes())

    def _margin(self, preference: Preference) -> float:
        if not self.score_margins:
            return preference.margin
        chosen, rejected = preference.scores
        return 0.0 if np.isnan(chosen - rejected) else chosen - rejected


def tokens_of(encoding: Encoding, written: Rendered) -> np.ndarray:
    """(n,) as `TOKEN`."""
    tokens = np.empty(len(encoding.ids), TOKEN)
    tokens["id"], tokens["trained"] = encoding.ids, trained_tokens(encoding, written)
    return tokens


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences begin with in common, at least one of each left over."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one["id"][:length] != other["id"][:length])
    return int(differ[0]) if len(differ) else length - 1


def _first_trained(tokens: np.ndarray) -> int:
    """Where the answer begins; behind the last token where there is none."""
    places = np.flatnonzero(tokens["trained"])
    return int(places[0]) if len(places) else len(tokens)


def _first_reply(said: Preference | SingleAnswer) -> int:
    """The message that answers begin with: the first behind a prompt, or that is not the same in both conversations of
    a pair, the last of the shorter one at the latest.
    """
    if isinstance(said, SingleAnswer):
        return said.num_prompt
    pairs = list(zip(said.chosen, said.rejected, strict=False))
    return next((turn for turn, (one, other) in enumerate(pairs) if one != other), len(pairs) - 1)


def _responses(said: Preference | SingleAnswer) -> Sequence[list[dict[str, Any]]]:
    return (said.messages,) if isinstance(said, SingleAnswer) else (said.chosen, said.rejected)


def _split_hash(said: Preference | SingleAnswer) -> int:
    """Of what the first user says: records about one question fall on the same side of a split."""
    asked = (message.get("content") or "" for message in said.prompt if message["role"] == "user")
    return text_hash(normalized(next(asked, None) or str(said.prompt)).encode())
