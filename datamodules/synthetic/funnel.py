"""Runs the filters one after another, and remembers what each of them saw, kept and dropped, and why.

Records are streamed: filters that decide about a record at once share one pass over them, and a pass ends with a filter
that has to see all records first. Between passes a record is its position and its scores: 14 bytes a filter.
"""

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores

__all__ = ["Context", "Example", "Funnel", "Stage", "run_filters"]

BATCH = 512  # records: enough for vectorized filters, and their texts are nothing in memory
NUM_EXAMPLES = 6  # of each filter's dropped records, and of those that stay
UNKNOWN = "no score"

Batch = tuple[np.ndarray, list[Candidate]]  # positions among all candidates, and the records


@dataclass(frozen=True)
class Example:
    """A dropped record, its score, and the reason."""

    candidate: Candidate
    score: float
    reason: str


@dataclass
class Stage:
    """One filter's part of the funnel: a row for every record that reached it.

    Args:
        name: the filter's, with a number where there are several of one name.
        filter: what scores.
        positions: (N,) int64, of the records among all candidates, ascending.
        scores: (N,) float32.
        codes: (N,) uint16; 0 where a record stays, else the place of its reason in `reasons`.
        reasons: texts: none, too low, too high, no score, and what the filter itself gives as reasons.
        bounds: the lowest and the highest score that stays.
        examples: of the dropped records, of each reason in turn.
    """

    name: str
    filter: Filter
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    reasons: list[str] = field(init=False)
    bounds: tuple[float, float] = (-np.inf, np.inf)
    examples: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reasons = ["", self.filter.too_low, self.filter.too_high, UNKNOWN]

    @property
    def num_in(self) -> int:
        """Records that reached the filter."""
        return len(self.positions)

    @property
    def num_kept(self) -> int:
        """Records that passed it."""
        return int((self.codes == 0).sum())

    @property
    def dropped(self) -> dict[str, int]:
        """How many records were dropped for which reason, the commonest first."""
        counts = Counter({self.reasons[code]: int(num) for code, num in enumerate(np.bincount(self.codes)) if code})
        return {reason: num for reason, num in counts.most_common() if num}

    def through(self, batches: Iterator[Batch], context: Context) -> Iterator[Batch]:
        """Scores the records and hands on those that stay; none where that is known only at the end."""
        positions, values, notes = [self.positions], [self.scores], [self.codes]
        batch: list[Candidate] = []

        def feed() -> Iterator[list[Candidate]]:
            nonlocal batch
            for places, batch in batches:
                positions.append(places)
                yield batch

        for scores in self.filter.scores(feed(), context):
            values.append(scores.values)
            notes.append(self._notes(scores))
            if not self.filter.is_late:
                stays = self._verdict(values[-1], notes[-1], self.filter.threshold.bounds(values[-1])) == 0
                if stays.any():
                    yield positions[-1][stays], list(itertools.compress(batch, stays))
        self.positions, self.scores = np.concatenate(positions), np.concatenate(values)
        self.bounds = self.filter.threshold.bounds(self.scores)
        self.codes = self._verdict(self.scores, np.concatenate(notes), self.bounds)

    def choose(self, generator: np.random.Generator) -> dict[int, int]:
        """Rows of dropped records to be shown, by position: one of each reason, then another of each, and so on."""
        rows: list[tuple[int, int]] = []
        for code in np.unique(self.codes[self.codes > 0]):
            of_reason = generator.permutation(np.flatnonzero(self.codes == code))[:NUM_EXAMPLES]
            rows += enumerate(of_reason.tolist())
        return {int(self.positions[row]): row for _, row in sorted(rows)[:NUM_EXAMPLES]}

    def example(self, row: int, candidate: Candidate) -> Example:
        """The record of a row with what the filter said of it."""
        return Example(candidate, float(self.scores[row]), self.reasons[self.codes[row]])

    def _notes(self, scores: Scores) -> np.ndarray:
        """(N,) uint16, places of the reasons that the filter itself gives; 0 where it gives none."""
        if not scores.reasons:
            return np.zeros(len(scores.values), np.uint16)
        for reason in dict.fromkeys(scores.reasons):
            if reason not in self.reasons:
                self.reasons.append(reason)
        return np.array([self.reasons.index(reason) for reason in scores.reasons], np.uint16)

    def _verdict(self, values: np.ndarray, notes: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        """(N,) uint16, 0 where a record stays, else the place of its reason."""
        generic = np.select([values < bounds[0], values > bounds[1], np.isnan(values)], [1, 2, 3], 0)
        return np.where((generic > 0) & (notes > 0), notes, generic).astype(np.uint16)


@dataclass
class Funnel:
    """What the filters made of the candidates.

    Args:
        candidates: all of them, anew and in the same order at each call.
        stages: of the filters, in their order.
        positions: (K,) int64, of those that all filters kept, ascending.
        lengths: (N,) int32, characters of every candidate's response.
        origins: (N,) uint16, places of their generators in `generators`.
        generators: names.
        samples: some of those that were kept, with their scores.
    """

    candidates: Callable[[], Iterator[Candidate]]
    stages: list[Stage]
    positions: np.ndarray
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    origins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    generators: list[str] = field(default_factory=list)
    samples: list[Candidate] = field(default_factory=list)

    @property
    def num_in(self) -> int:
        """All candidates."""
        return len(self.lengths)

    @property
    def num_kept(self) -> int:
        """Those that all filters kept."""
        return len(self.positions)

    def kept(self) -> Iterator[Candidate]:
        """The records that all filters kept, with the filters' scores beside those of the generators."""
        for row, (_, candidate) in enumerate(_chosen(self.candidates(), self.positions)):
            yield self.scored(row, candidate)

    def scored(self, row: int, candidate: Candidate) -> Candidate:
        """The candidate at `positions[row]` with the filters' scores."""
        names = (stage.name for stage in self.stages)
        return replace(candidate, scores=candidate.scores | dict(zip(names, self._scores[row].tolist(), strict=True)))

    @cached_property
    def _scores(self) -> np.ndarray:
        """(K, S) float32, what each filter said of the records that all of them kept."""
        of_stages = (stage.scores[np.searchsorted(stage.positions, self.positions)] for stage in self.stages)
        return np.stack([*of_stages], 1) if self.stages else np.zeros((self.num_kept, 0), np.float32)

    def table(self) -> str:
        """The funnel as plain text, a line for each filter, with the reasons for what it dropped."""
        lines = [f"{self.num_in:,} records were generated, {self.num_kept:,} passed the filters"]
        width = max((len(stage.name) for stage in self.stages), default=0)
        for stage in self.stages:
            reasons = ", ".join(f"{num:,} {reason}" for reason, num in stage.dropped.items())
            lines.append(f"  {stage.name:{width}}  {stage.num_in:>9,} -> {stage.num_kept:>9,}   {reasons}".rstrip())
        return "\n".join(lines)


def run_filters(filters: Sequence[Filter], candidates: Callable[[], Iterator[Candidate]], context: Context) -> Funnel:
    """Runs the filters in their order, each on what those before it kept.

    Args:
        candidates: all of them, anew and in the same order at each call; it is called about once for each filter that
            has to see all records (near duplicates, quantiles), and once more for `lengths` and examples.
        context: what filters may look at beside the records.
    """
    stages = [Stage(name, each) for name, each in zip(_names(filters), filters, strict=True)]
    positions = None
    for stages_of_pass in _passes(stages):
        batches = _batches(candidates(), positions)
        for stage in stages_of_pass:
            batches = stage.through(batches, context)
        for _ in batches:
            pass
        positions = stages_of_pass[-1].positions[stages_of_pass[-1].codes == 0]
    if positions is None:
        positions = np.arange(sum(1 for _ in candidates()))
    funnel = Funnel(candidates, stages, positions)
    _survey(funnel)
    return funnel


def _survey(funnel: Funnel) -> None:
    """Reads all candidates once more, for their lengths and for examples of what was dropped and kept."""
    generator = np.random.default_rng(0)
    dropped = [(stage, stage.choose(generator)) for stage in funnel.stages]
    rows = generator.permutation(funnel.num_kept)[:NUM_EXAMPLES]
    kept = dict(zip(funnel.positions[rows].tolist(), rows.tolist(), strict=True))
    lengths, origins, names = array("i"), array("H"), dict[str, int]()
    for position, candidate in enumerate(funnel.candidates()):
        lengths.append(len(candidate.answer))
        origins.append(names.setdefault(candidate.provenance.generator, len(names)))
        if position in kept:
            funnel.samples.append(funnel.scored(kept[position], candidate))
        for stage, examples in dropped:
            if position in examples:
                stage.examples.append(stage.example(examples[position], candidate))
    funnel.lengths, funnel.origins = np.array(lengths, np.int32), np.array(origins, np.uint16)
    funnel.generators = list(names)


def _names(filters: Sequence[Filter]) -> list[str]:
    """Of the filters; the second of a name is NAME_2."""
    seen: Counter[str] = Counter()
    names = []
    for each in filters:
        seen[each.name] += 1
        names.append(each.name if seen[each.name] == 1 else f"{each.name}_{seen[each.name]}")
    return names


def _passes(stages: list[Stage]) -> Iterator[list[Stage]]:
    """The stages in groups that can share one reading of the records: only the last of a group may be late."""
    group: list[Stage] = []
    for stage in stages:
        group.append(stage)
        if stage.filter.is_late:
            yield group
            group = []
    if group:
        yield group


def _batches(candidates: Iterator[Candidate], positions: np.ndarray | None) -> Iterator[Batch]:
    chosen = enumerate(candidates) if positions is None else _chosen(candidates, positions)
    while batch := list(itertools.islice(chosen, BATCH)):
        yield np.array([position for position, _ in batch]), [candidate for _, candidate in batch]


def _chosen(candidates: Iterator[Candidate], positions: np.ndarray) -> Iterator[tuple[int, Candidate]]:
    """The candidates at some ascending positions."""
    wanted = iter(positions.tolist())
    position = next(wanted, None)
    for place, candidate in enumerate(candidates):
        if position is None:
            return
        if place == position:
            yield place, candidate
            position = next(wanted, None)
