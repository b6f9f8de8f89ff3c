"""How right the answers are over the number of samples, for every choice, from one pool."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from callbacks.plotting import BLUE, GREEN, RED, new_figure, save_figure, set_legend, set_title, style
from llm_lightning.inference.choices import BestOfN, Choice, FirstSample, MajorityVote
from llm_lightning.inference.costs import Cost
from llm_lightning.inference.estimators import best_at_k, choice_at_k, majority_at_k, pass_at_k
from llm_lightning.measuring.statistics import bootstrap_interval

ANY = "any"
"""The name of what no choice can be better than: that one of the samples is right."""

COLOURS = (RED, BLUE, GREEN, "#b08b2e", "#6a4c93")


class Point(NamedTuple):
    """A share of right answers, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """By the name of a choice (and `any`) a point for each number of samples.

    Args:
        counts: numbers of samples: 1, 2, 4, ... and all.
        points: see there.
        tokens: mean tokens that a prompt's samples have, for each number.
        num_prompts: that were asked.
        cost: of a token, where it was measured.
    """

    counts: list[int]
    points: Mapping[str, list[Point]]
    tokens: list[float]
    num_prompts: int
    cost: Cost | None = None

    @property
    def costs(self) -> dict[str, list[float]]:
        """Seconds and joules that a prompt's samples take, for each number; without what was not measured."""
        each = {} if self.cost is None else {"seconds": self.cost.seconds, "joules": self.cost.joules}
        return {name: [value * count for count in self.tokens] for name, value in each.items() if value is not None}

    def table(self) -> str:
        """Lines to print."""
        heads = [f"{'samples':>8}{'tokens':>9}", *(f"{name:>10}" for name in self.costs)]
        lines = ["".join(heads) + "".join(f"{name:>24}" for name in self.points)]
        for place, (count, tokens) in enumerate(zip(self.counts, self.tokens, strict=True)):
            each = (points[place] for points in self.points.values())
            shown = "".join(f"{f'{p.value:.3f} ({p.low:.3f} to {p.high:.3f})':>24}" for p in each)
            costs = "".join(f"{values[place]:>10.3g}" for values in self.costs.values())
            lines.append(f"{count:>8}{tokens:>9,.0f}{costs}{shown}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For files."""
        points = {name: [point._asdict() for point in each] for name, each in self.points.items()}
        found = {"samples": self.counts, "tokens": self.tokens, **self.costs}
        return found | {"right": points, "num_prompts": self.num_prompts}

    def draw(self, picture: Path) -> None:
        """Shares of right answers over the tokens that they take."""
        figure = new_figure(7, 4)
        axes = figure.subplots()
        for colour, (name, points) in zip(COLOURS * len(self.points), self.points.items(), strict=False):
            values, low, high = zip(*points, strict=True)
            axes.plot(self.tokens, values, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name)
            axes.fill_between(self.tokens, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel("tokens a prompt")
        set_title(axes, "right answers")
        set_legend(axes)
        style(axes)
        save_figure(figure, picture)


def curve_of(
    rows: Iterable[Mapping[str, Any]],
    truth: str,
    choices: Mapping[str, Choice],
    weights: Mapping[str, float],
    cost: Cost | None = None,
) -> Curve | None:
    """What is right of all prompts that have all of their samples; None where no prompt has.

    Args:
        rows: of a pool.
        truth: the reward that is above 0.5 for a right answer.
        choices: by name.
        weights: of the rewards that choices go by.
        cost: of a token.
    """
    values: dict[str, list[list[float]]] = {}
    num_tokens: list[float] = []
    counts: list[int] = []
    for row in rows:
        samples = row["samples"]
        counts = counts or _counts(len(samples))
        if not samples or len(samples) != counts[-1]:
            continue
        right = [float(sample["rewards"][truth] > 0.5) for sample in samples]
        totals = [sum(weight * sample["rewards"][name] for name, weight in weights.items()) for sample in samples]
        texts = [sample["text"] for sample in samples]
        each = {ANY: [pass_at_k(len(right), int(sum(right)), k) for k in counts]}
        each |= {name: right_at(choice, texts, totals, right, counts) for name, choice in choices.items()}
        for name, found in each.items():
            values.setdefault(name, []).append(found)
        num_tokens.append(sum(sample["num_tokens"] for sample in samples) / len(samples))
    if not num_tokens:
        return None
    mean = sum(num_tokens) / len(num_tokens)
    points = {
        name: [_point([each[place] for each in found]) for place in range(len(counts))]
        for name, found in values.items()
    }
    return Curve(counts, points, [mean * count for count in counts], len(num_tokens), cost)


def right_at(
    choice: Choice, texts: Sequence[str], totals: Sequence[float], right: Sequence[float], counts: Sequence[int]
) -> list[float]:
    """The probability that the choice is right among so many samples, for each of `counts`."""
    if isinstance(choice, FirstSample):
        return [sum(right) / len(right)] * len(counts)
    if isinstance(choice, BestOfN):
        return [best_at_k(totals, right, k) for k in counts]
    if isinstance(choice, MajorityVote) and not choice.needs_rewards:
        by_count = majority_at_k([choice.answer(text) for text in texts], right)
        return [by_count[k - 1] for k in counts]

    def choose(places: list[int]) -> int:
        return choice.choose([texts[place] for place in places], [totals[place] for place in places])

    return [choice_at_k(choose, right, k) for k in counts]


def _counts(num_samples: int) -> list[int]:
    counts = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]
    return counts if not counts or counts[-1] == num_samples else [*counts, num_samples]


def _point(values: Sequence[float]) -> Point:
    return Point(sum(values) / len(values), *bootstrap_interval(values))
