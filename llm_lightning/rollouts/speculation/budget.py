"""How many tokens to guess for each completion, from how often guesses were right."""

from collections.abc import Callable, Sequence

import numpy as np

LEAST_GAIN = 1.05
"""Expected speed against that without drafts from which on there are drafts: the costs are known about so well."""

MOST_SURE = 0.98

DECAY = 0.9
"""Of a completion's earlier observations with each new one: a text quotes for a while, and then does not."""

PRIOR_WEIGHT = 2.0
"""Observations of its own that outweigh what other completions of the call saw."""

GLOBAL_DECAY = 0.99


ALLOWANCE = 0.03
"""Share of all work that may be lost on drafts that turn out wrong."""


class Ledger:
    """What a draft model may cost at any time: a share of the work so far, and what it has saved.

    Attributes:
        credit: in tokens of the network that writes, see `Slots.cost`.
    """

    def __init__(self) -> None:
        self.credit = 0.0

    def enter(self, num_written: float, plain: float, paid: float) -> None:
        """A pass.

        Args:
            num_written: tokens that it wrote of each completion on average.
            plain: cost of a pass without drafts, which writes one of each.
            paid: its own cost, that of the drafts included.
        """
        self.credit += ALLOWANCE * plain + num_written * plain - paid


class Tally:
    """How often a guess was right, by kinds of guesses (how long a match it came from), with old ones forgotten."""

    def __init__(self, num_kinds: int, decay: float, before: tuple[float, float] = (0.0, 0.0)) -> None:
        self.decay = decay
        self.hits, self.tries = (np.full(num_kinds, start, float) for start in before)

    def add(self, kind: int, num_right: int, missed: bool) -> None:
        """A guess whose first tokens were right; whether there is a first wrong one is known, or nothing more."""
        for is_right in [True] * num_right + [False] * missed:
            self.hits[kind] = self.hits[kind] * self.decay + is_right
            self.tries[kind] = self.tries[kind] * self.decay + 1


class Rates:
    """How probable it is that the next token of a guess is right, given that those before it were.

    Args:
        num_kinds: of guesses.
        start: before anything was seen.
    """

    def __init__(self, num_kinds: int, start: float) -> None:
        self.num_kinds = num_kinds
        self.all = Tally(num_kinds, GLOBAL_DECAY, (2 * start, 2))

    def own(self) -> Tally:
        """Of one completion."""
        return Tally(self.num_kinds, DECAY)

    def add(self, own: Tally, kind: int, num_right: int, missed: bool) -> None:
        """What became of a guess."""
        own.add(kind, num_right, missed)
        self.all.add(kind, num_right, missed)

    def of(self, own: Tally, kind: int) -> float:
        """For a guess of this kind in the completion whose tally this is."""
        usual = self.all.hits[kind] / self.all.tries[kind]
        rate = (PRIOR_WEIGHT * usual + own.hits[kind]) / (PRIOR_WEIGHT + own.tries[kind])
        return min(float(rate), MOST_SURE)


def allot(
    rates: Sequence[float],
    limits: Sequence[int],
    num_alive: int,
    cost: Callable[[np.ndarray], np.ndarray],
    draft_share: float = 0.0,
) -> np.ndarray:
    """(S,) tokens to guess for each slot: those with which a unit of time is expected to write the most.

    Token j of a guess is of use with probability rate^j. All tokens of all slots are ranked by it, and as many of the
    first ones are taken as raise the tokens written per cost.

    Args:
        rates: (S,) see `Rates`.
        limits: (S,) longest guess of each slot.
        num_alive: slots that a pass writes a token of in any case.
        cost: of a pass over so many tokens.
        draft_share: what a pass of the network that guesses costs, beside one that writes; it takes one for every token
            of the longest guess.
    """
    depths = np.arange(1, max(limits, default=0) + 1)
    gains = np.asarray(rates, float)[:, None] ** depths
    rows, columns = np.nonzero((depths <= np.asarray(limits)[:, None]) & (gains > 0))
    if not len(rows):
        return np.zeros(len(limits), int)
    order = np.lexsort((columns, -gains[rows, columns]))
    rows, columns = rows[order], columns[order]
    counts = np.arange(len(rows) + 1)
    written = num_alive + np.concatenate([[0.0], gains[rows, columns].cumsum()])
    levels = np.concatenate([[0], np.maximum.accumulate(columns + 1)])
    costs = cost(len(limits) + counts).astype(float)
    if draft_share:
        costs += draft_share * levels * cost(np.ceil(counts / np.maximum(levels, 1)))
    speeds = written / costs
    best = int(speeds.argmax())
    if speeds[best] < LEAST_GAIN * speeds[0]:
        best = 0
    return np.bincount(rows[:best], minlength=len(limits))
