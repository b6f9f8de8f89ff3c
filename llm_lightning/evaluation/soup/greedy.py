"""Which networks go into a soup (Wortsman et al., arXiv:2203.05482): the best, and each that makes it better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_lightning.evaluation.comparison import LEVEL
from llm_lightning.evaluation.soup.held_out import Losses
from llm_lightning.measuring.statistics import Difference


@dataclass(frozen=True)
class Tried:
    """An ingredient, in the order of their own losses.

    Args:
        number: among those that were given.
        own: its losses.
        soup: those of the mean of it and what was kept before; None for the first, which is the beginning.
        difference: of the losses, from the soup before to that with it.
        p: of the difference, times the number of such tests (Bonferroni).
        kept: whether it stays in the soup.
    """

    number: int
    own: Losses
    soup: Losses | None = None
    difference: Difference | None = None
    p: float | None = None
    kept: bool = True


def greedy_soup(count: int, losses: Callable[[Sequence[int]], Losses]) -> list[Tried]:
    """Try each network in the order of its own loss; it is kept where the soup's loss falls, and the test shows it.

    The paper keeps what does no harm. Here chance is kept out: a network stays where the paired test finds the mean
    with it better, at the 5 % level over all the tests together.

    Args:
        count: of networks.
        losses: of the equal mean of those with these numbers.
    """
    own = [losses([number]) for number in range(count)]
    first, *others = sorted(range(count), key=lambda number: own[number].mean)
    tried, soup, kept = [Tried(first, own[first])], own[first], [first]
    for number in others:
        candidate = losses([*kept, number])
        difference = soup.until(candidate)
        p = min(1.0, difference.p * len(others))
        is_better = difference.value < 0 and p < LEVEL
        tried.append(Tried(number, own[number], candidate, difference, p, is_better))
        if is_better:
            soup, kept = candidate, [*kept, number]
    return tried


def table(tried: Sequence[Tried], names: Sequence[str]) -> str:
    """A line for each network, with 95 % intervals."""
    lines = [("network", "own loss", "95 %", "loss of the soup with it", "95 %", "difference", "95 %", "p", "kept")]
    for each in tried:
        with_it = ("", "", "", "", "")
        if each.soup is not None and each.difference is not None:
            low, high = each.difference.low, each.difference.high
            difference = (f"{each.difference.value:+.5f}", f"{low:+.5f} to {high:+.5f}", f"{each.p:.2g}")
            with_it = (*_in_words(each.soup), *difference)
        lines.append((names[each.number], *_in_words(each.own), *with_it, "yes" if each.kept else "no"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _in_words(losses: Losses) -> tuple[str, str]:
    low, high = losses.interval
    return f"{losses.mean:.5f}", f"{low:.4f} to {high:.4f}"
