"""From pairs of conversations to token ids: what both have in common once, then the rest of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.conversations import trained_tokens
from datamodules.records.preferences import IDENTICAL, Preference, preference_of, preferences_of
from datamodules.records.record_source import ChatRecord
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

Cut = Literal["drop", "left", "right"]
TOKEN = np.dtype([("id", "<u4"), ("trained", "?")])
"""With whether it belongs to an answer, whose probability preference optimization moves; rewards do not look at it."""
Parts: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # shared tokens, and each response's own, as `TOKEN`

# What is known of a pair beside its tokens: how many both responses share and how many are the chosen one's own, and by
# how much and with which scores it was preferred; NaN where there are no scores.
PAIR = np.dtype(
    [
        ("shared", "<u4"), ("chosen", "<u4"), ("is_tie", "?"), ("margin", "<f4"),
        ("chosen_score", "<f4"), ("rejected_score", "<f4"), ("bands", "<u8", (NUM_BANDS,)),
    ]
)  # fmt: skip

EQUAL = LeftOut("that are the same once they are cut to the length of a row")
TOO_LONG = LeftOut("of two answers that are longer than a row without their prompt")
NO_ANSWER = LeftOut("of which the length of a row leaves no answer")


class WrittenPair(NamedTuple):
    """A pair as the template writes it, with where the answers are: all replies behind what both have in common."""

    preference: Preference
    chosen: Rendered
    rejected: Rendered


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
        for batch in bounded_batches(self.written(unit, bad), lambda one: len(one.chosen.text + one.rejected.text)):
            written = [rendered for one in batch for rendered in (one.chosen, one.rejected)]
            encodings = self.tokenizer.encode_batch([one.text for one in written], add_special_tokens=False)
            tokens = [tokens_of(encoding, one) for encoding, one in zip(encodings, written, strict=True)]
            for one, chosen, rejected in zip(batch, tokens[::2], tokens[1::2], strict=True):
                document = self._document(one, chosen, rejected)
                if isinstance(document, LeftOut):
                    bad.left_out[document.reason] += 1
                else:
                    yield document

    def written(self, unit: Unit, bad: BadRecords) -> Iterator[WrittenPair]:
        """The unit's pairs as the template writes them."""
        for place, record in records(unit):
            found = self._preferences(record, unit)
            for one in found if isinstance(found, list) else [found]:
                written = self._write(one) if isinstance(one, Preference) else one
                if isinstance(written, Bad):
                    bad.note(place, written)
                    break
                if isinstance(written, LeftOut):
                    bad.left_out[written.reason] += 1
                else:
                    bad.unread.update(self._unread(written.preference))
                    yield written

    def read(self, unit: Unit) -> Iterator[ChatRecord]:
        """The unit's pairs, without those that cannot be read, say nothing, or are ties."""
        for _, record in records(unit):
            found = self._preferences(record, unit)
            for preference in found if isinstance(found, list) else []:
                if not preference.is_tie and not isinstance(record, Bad):
                    rejected = str(preference.rejected[-1]["content"])
                    yield ChatRecord(record, preference.chosen, rejected, _split_hash(preference))

    def refuses(self, messages: list[dict[str, Any]], rejected: str | None) -> str | None:
        """Why the last message and a rejected one in its place cannot be trained on; None where it can."""
        record = {"messages": messages[:-1], "chosen": messages[-1]["content"], "rejected": rejected}
        preference = preference_of(record, "messages-pair", None)
        written = self._write(preference) if isinstance(preference, Preference) else preference
        return None if isinstance(written, WrittenPair) else written.reason

    def _preferences(self, record: Any, unit: Unit) -> list[Preference] | Bad | LeftOut:
        return record if isinstance(record, Bad) else preferences_of(record, unit.shape, unit.columns, self.labels)

    def _write(self, preference: Preference) -> WrittenPair | Bad:
        first, found = _first_difference(preference), []
        for messages in _responses(preference):
            text = self.template.write(messages, preference.tools)
            written = text if isinstance(text, Bad) else self.template.replies(text, messages, preference.tools, first)
            if isinstance(written, Bad):
                return written
            found.append(written)
        return WrittenPair(preference, *found)

    def _unread(self, preference: Preference) -> set[str]:
        return set().union(*(self.template.unread(messages, preference.tools) for messages in _responses(preference)))

    def _document(self, one: WrittenPair, chosen: np.ndarray, rejected: np.ndarray) -> Document | LeftOut:
        if np.array_equal(chosen["id"], rejected["id"]):
            return IDENTICAL
        shared = common_prefix(chosen, rejected)
        if shared < self.least_shared:
            shared = 0
        whole = (chosen[:shared], chosen[shared:], rejected[shared:])
        fits = self.too_long == "drop" or sum(map(len, whole)) <= self.longest
        parts = whole if fits else self._cut(whole, common_prefix(chosen, rejected))
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
        details["bands"] = signature("\n".join(message.get("content") or "" for message in preference.prompt))
        num_bytes = len(one.chosen.text.encode()) + len(one.rejected.text.encode())
        ids = tokens["id"].astype(self.dtype)
        return Document(ids, tokens["trained"], num_bytes, _split_hash(preference), details=details.tobytes())

    def _margin(self, preference: Preference) -> float:
        if not self.score_margins:
            return preference.margin
        chosen, rejected = preference.scores
        return 0.0 if np.isnan(chosen - rejected) else chosen - rejected

    def _cut(self, parts: Parts, num_common: int) -> Parts | LeftOut:
        """The parts cut to the length of a row; both responses begin with `num_common` equal tokens."""
        shared, chosen, rejected = parts
        excess = len(shared) + len(chosen) + len(rejected) - self.longest
        if self.too_long == "left":
            if len(shared):
                cut = (shared[excess:], chosen, rejected)
            else:
                each = -(-excess // 2)
                cut = (shared, chosen[each:], rejected[each:])
                excess = each
            return cut if excess <= num_common else TOO_LONG
        room = self.longest - len(shared)
        # The longer response is cut first, down to the other's length.
        fair = max(room // 2, room - min(len(chosen), len(rejected)))
        chosen, rejected = chosen[: max(0, fair)], rejected[: max(0, fair)]
        return EQUAL if np.array_equal(chosen["id"], rejected["id"]) else (shared, chosen, rejected)


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


def _first_difference(preference: Preference) -> int:
    """The first message that is not the same in both conversations, the last of the shorter one at the latest."""
    pairs = list(zip(preference.chosen, preference.rejected, strict=False))
    return next((turn for turn, (one, other) in enumerate(pairs) if one != other), len(pairs) - 1)


def _responses(preference: Preference) -> Iterator[list[dict[str, Any]]]:
    yield preference.chosen
    yield preference.rejected


def _split_hash(preference: Preference) -> int:
    """Of what the first user says: pairs about one question fall on the same side of a split."""
    said = (message.get("content") or "" for message in preference.prompt if message["role"] == "user")
    return text_hash(normalized(next(said, None) or str(preference.prompt)).encode())
