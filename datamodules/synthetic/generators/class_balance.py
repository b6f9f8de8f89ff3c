"""Class balancing: more records of the classes that are rare."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.sources.surrogates import encodable
from datamodules.synthetic.generators.base import Draft, Dropped, RecordGenerator, Steps, check_template, fill, finished
from datamodules.synthetic.seeds import Seed, Seeds

TEMPLATE = """\
Here are texts of the class "{label}":

{examples}

Write one more text of the same class and in the same form, about something else. Write the text alone."""

MOST_CLASSES = 1000


class ClassBalance(RecordGenerator):
    """Writes records for the classes that are short, until each has as many as the largest.

    What the user says is written anew after real examples of the class; the answer is the class, or, where classes
    stand in a column of their own, what the examples' first record answers.

    Args:
        column: of the record, which holds its class. None: the answer is the class.
        target: real and new records that each class is to have. None: as many as the largest class has.
        num_shots: real records of the class that are shown.
        template: what is asked; `{label}` and `{examples}` stand for the class and the texts.
        kwargs: see `RecordGenerator`; `count` bounds how many are begun.
    """

    def __init__(
        self,
        column: str | None = None,
        target: int | None = None,
        num_shots: int = 3,
        template: str = TEMPLATE,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_shots=num_shots, **kwargs)
        self.column = column
        self.target = target
        self.template = check_template(self, template, "label", "examples")
        self._classes: tuple[str, dict[str, np.ndarray]] = ("", {})

    def num_tasks(self, seeds: Seeds) -> int:
        """What all classes lack together."""
        lacking = sum(count for _, count in self._lacking(seeds))
        return lacking if self.count is None else min(self.count, lacking)

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask once, with examples of the class."""
        label = self._class_of(number, seeds)
        members = self._members(seeds)[label]
        random = np.random.default_rng([self.seed, number])
        shots = [seeds[int(i)] for i in random.choice(members, min(self.num_shots, len(members)), replace=False)]
        examples = "\n\n".join(f"{place}. {shot.question}" for place, shot in enumerate(shots, 1))
        [reply] = yield [self.ask(fill(self.template, label=label, examples=examples), number, 0)]
        text = finished(reply)
        if any(text == shot.question for shot in shots):
            raise Dropped("copies an example")
        answer = label if self.column is None else shots[0].answer
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return [Draft(messages, tuple(shots), label=label)]

    def _members(self, seeds: Seeds) -> dict[str, np.ndarray]:
        """The numbers of each class's records; 8 bytes a record are held."""
        if self._classes[0] != seeds.key:
            found: dict[str, list[int]] = {}
            for number, seed in enumerate(seeds):
                found.setdefault(self._label(seed), []).append(number)
                if len(found) > MOST_CLASSES:
                    where = f"column {self.column!r}" if self.column else "the answers"
                    raise DataError(f"generators: ClassBalance finds more than {MOST_CLASSES} classes in {where}")
            self._classes = (seeds.key, {label: np.array(found[label]) for label in sorted(found)})
        return self._classes[1]

    def _label(self, seed: Seed) -> str:
        if self.column is None:
            return seed.answer.strip()
        if self.column not in seed.columns:
            raise DataError(
                f"generators: ClassBalance.column={self.column!r} is not in record {seed.id!r}, which has "
                f"{', '.join(seed.columns)}"
            )
        return encodable(str(seed.columns[self.column]))

    def _lacking(self, seeds: Seeds) -> Sequence[tuple[str, int]]:
        sizes = {label: len(members) for label, members in self._members(seeds).items()}
        target = self.target or max(sizes.values())
        return [(label, max(0, target - size)) for label, size in sizes.items()]

    def _class_of(self, number: int, seeds: Seeds) -> str:
        for label, count in self._lacking(seeds):
            if number < count:
                return label
            number -= count
        raise IndexError(number)
