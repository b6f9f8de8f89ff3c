"""The texts of a unit, one document each, clean enough for any tokenizer."""

from collections.abc import Iterator
from typing import Literal

from datamodules.errors import DataError
from datamodules.formats import FORMATS, records
from datamodules.units import Bad, Place, Record, Unit

OnBadRecord = Literal["stop", "skip"]


class Texts:
    """Iterates the documents of a unit.

    Args:
        on_bad_record: what to do with a record that is broken, is not UTF-8, or holds no text: `stop` raises, `skip`
            counts it.

    Attributes:
        num_bad: how many bad records were skipped so far.
        first_bad: where the first one is, and what is wrong with it.
    """

    def __init__(self, unit: Unit, on_bad_record: OnBadRecord = "stop") -> None:
        self.unit = unit
        self.on_bad_record = on_bad_record
        self.num_bad = 0
        self.first_bad = ""

    def __iter__(self) -> Iterator[str]:
        """Documents, without the empty ones.

        Raises:
            DataError: a bad record, with `on_bad_record="stop"`.
        """
        for place, record in records(self.unit):
            text = _text_of(record, self.unit.column)
            if isinstance(text, Bad):
                self._note(place, text)
            elif text:
                yield encodable(text)

    def _note(self, place: Place, bad: Bad) -> None:
        self.num_bad += 1
        if self.num_bad == 1:
            self.first_bad = f"{FORMATS[self.unit.format].locate(self.unit, place)}: {bad.reason}"
            if self.on_bad_record == "stop":
                raise bad_record_error(self.first_bad)


def bad_record_error(first_bad: str) -> DataError:
    """The error for a bad record at a known place, with the way out."""
    return DataError(f"{first_bad} (repair it, or skip such records with on_bad_record=skip)")


def _text_of(record: Record | Bad, column: str) -> str | Bad:
    if isinstance(record, Bad):
        return record
    text = record.get(column)
    if isinstance(text, str):
        return text
    if column not in record:
        return Bad(f"no column {column!r}; it has: {', '.join(str(name) for name in record)}")
    return Bad(f"column {column!r} holds {type(text).__name__}, not text")


def encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can carry ("\\ud800") and no UTF-8 encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
