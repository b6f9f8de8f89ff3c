"""What becomes of records that cannot be trained on: the first one stops the run, or all are counted."""

from collections import Counter
from typing import Any, Literal, NamedTuple

from datamodules.errors import DataError
from datamodules.sources.formats import FORMATS
from datamodules.sources.units import Bad, Place, Unit

OnBadRecord = Literal["stop", "skip"]


class LeftOut(NamedTuple):
    """Stands where a record is in order and has nothing to train on; in words that go after "3 pairs"."""

    reason: str


class BadRecords:
    """Notes the bad records of a unit, those that are left out, and what is not read of the others.

    Args:
        on_bad_record: `stop` raises at the first one, `skip` counts them.

    Attributes:
        count: how many there were so far.
        first: where the first one is, and what is wrong with it.
        left_out: how many records were left out, by the reason.
        unread: how many records have a key in their turns of which the chat template writes nothing, by the key.
        filtered: what filters made of the documents, as JSON can write it; empty where there are none.
    """

    def __init__(self, unit: Unit, on_bad_record: OnBadRecord = "stop") -> None:
        self.unit = unit
        self.on_bad_record = on_bad_record
        self.count = 0
        self.first = ""
        self.left_out: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.filtered: dict[str, Any] = {}

    def note(self, place: Place, bad: Bad) -> None:
        """Count one.

        Raises:
            DataError: it is the first one, with `on_bad_record="stop"`.
        """
        self.count += 1
        if self.count == 1:
            self.first = f"{FORMATS[self.unit.format].locate(self.unit, place)}: {bad.reason}"
            if self.on_bad_record == "stop":
                raise bad_record_error(self.first)


def bad_record_error(first_bad: str) -> DataError:
    """The error for a bad record at a known place, with the way out."""
    return DataError(f"{first_bad} (repair it, or skip such records with on_bad_record=skip)")
