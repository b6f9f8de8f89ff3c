"""Is the second of two models better than the first? Their scores of the same items, side by side."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.evaluation.results import Evaluation, Items, newest_of_each_task, read_items
from llm_lightning.measuring.statistics import LARGEST, Difference, holm, paired_bootstrap, paired_shares

LEVEL = 0.05

ASKED = ("version", "num_fewshot", "max_new_tokens", "judged_by")
"""What a task's results say of how it was asked."""

BITS, PERPLEXITIES = "bits_per_byte", {"word_perplexity", "byte_perplexity"}
"""The same of a text; a mean of perplexities is one of the few worst texts."""

MCNEMAR, BOOTSTRAP, CLUSTERED = "McNemar, exact", "paired bootstrap", "paired bootstrap of clusters"
MCNEMAR_CLUSTERS = "McNemar, exact, of clusters"


@dataclass(frozen=True)
class PairedScore:
    """One metric and reading of a task that two evaluations have in common.

    Args:
        task, metric, reading: which.
        first, second: mean scores over the items that both have.
        num_pairs: these items.
        num_unpaired: items that only one of them has.
        num_undefined: items of both left out, as one of their scores is no number, or none to calculate with.
        test: its name.
        difference: second minus first; its p is of this test alone.
        corrected_p: after Holm's correction over all tests of the comparison.
        higher_is_better: as the evaluation says.
    """

    task: str
    metric: str
    reading: str
    first: float
    second: float
    num_pairs: int
    num_unpaired: int
    num_undefined: int
    test: str
    difference: Difference
    corrected_p: float
    higher_is_better: bool

    @property
    def verdict(self) -> str:
        """In words; a difference counts where its corrected p is below 0.05."""
        if not self.corrected_p < LEVEL:
            return "no difference shown"
        return "better" if (self.difference.value > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """All that two runs' evaluations have in common.

    Args:
        scores: paired tests.
        differing_settings: by task, settings that were not the same: (name, first, second). A difference of scores may
            come from there.
        unpaired_tasks: tasks of which no item is in both.
    """

    scores: list[PairedScore]
    differing_settings: dict[str, list[tuple[str, Any, Any]]]
    unpaired_tasks: list[str]


def compare(
    first: list[Evaluation], second: list[Evaluation], metrics: Collection[tuple[str, str]] | None = None
) -> Comparison:
    """Test each score that both have, each task in its newest evaluation.

    Scores that are 0 or 1 are tested by McNemar's exact test, others, and those of items that share a source, by a
    paired bootstrap; where no item differs, each source counts as one item. Of perplexities and bits per byte, which
    say the same, the latter are tested. Items pair by the hash of their content, so that a subset or another order does
    no harm.

    Args:
        first, second: evaluations of the two.
        metrics: (task, metric) of what is tested, and corrected for; by default all.

    Raises:
        UserError, OSError: a file of items is not as it has to be.
    """
    newest = newest_of_each_task(first), newest_of_each_task(second)
    common = [task for task in newest[0] if task in newest[1]]
    read: dict[Path, dict[tuple[str, str, str], Items]] = {}
    for each in (each for task in common for each in (newest[0][task], newest[1][task])):
        if each.folder not in read:
            read[each.folder] = read_items(each.folder)
    scores: list[PairedScore] = []
    settings, unpaired = {}, []
    for task in common:
        one, two = newest[0][task], newest[1][task]
        found = _paired_scores(task, one, (read[one.folder], read[two.folder]))
        scores += [each for each in found if metrics is None or (task, each.metric) in metrics]
        if not found:
            unpaired.append(task)
        if differing := _differing(one, two, task):
            settings[task] = differing
    corrected = holm([1.0 if math.isnan(each.difference.p) else each.difference.p for each in scores])
    scores = [replace(each, corrected_p=p) for each, p in zip(scores, corrected, strict=True)]
    return Comparison(scores, settings, unpaired)


def _paired_scores(task: str, one: Evaluation, items: Any) -> list[PairedScore]:
    better = {(s["metric"], s["reading"]): s["higher_is_better"] for s in one.tasks[task]["scores"]}
    found = []
    for (metric, reading), higher_is_better in better.items():
        key = (task, metric, reading)
        if key not in items[0] or key not in items[1] or (metric in PERPLEXITIES and (BITS, reading) in better):
            continue
        paired = _paired_score(key, items[0][key], items[1][key], higher_is_better)
        if paired is not None:
            found.append(paired)
    return found


def _paired_score(key: tuple[str, str, str], one: Items, two: Items, higher_is_better: bool) -> PairedScore | None:
    hashes, left, right = np.intersect1d(one.hashes, two.hashes, assume_unique=True, return_indices=True)
    first, second = one.values[left], two.values[right]
    is_defined = (np.abs(first) < LARGEST) & (np.abs(second) < LARGEST)
    first, second = first[is_defined], second[is_defined]
    if not len(first):
        return None
    clusters = None if one.clusters is None else one.clusters[left][is_defined]
    if clusters is not None and len(set(clusters)) == len(clusters):
        clusters = None
    is_share = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    if clusters is not None and is_share and (first == second).all():
        # Nothing to draw from: a bootstrap would be sure of a difference of 0, however few clusters there are.
        same = np.zeros(len(set(clusters)))
        test, difference = MCNEMAR_CLUSTERS, paired_shares(same, same)
    elif clusters is not None:
        test, difference = CLUSTERED, paired_bootstrap(first, second, clusters)
    elif is_share:
        test, difference = MCNEMAR, paired_shares(first, second)
    else:
        test, difference = BOOTSTRAP, paired_bootstrap(first, second)
    return PairedScore(
        *key,
        first=float(first.mean()),
        second=float(second.mean()),
        num_pairs=len(first),
        num_unpaired=len(one.hashes) + len(two.hashes) - 2 * len(hashes),
        num_undefined=int((~is_defined).sum()),
        test=test,
        difference=difference,
        corrected_p=difference.p,
        higher_is_better=higher_is_better,
    )


def _differing(one: Evaluation, two: Evaluation, task: str) -> list[tuple[str, Any, Any]]:
    settings = [(name, one.settings.get(name), two.settings.get(name)) for name in {**one.settings, **two.settings}]
    own = [(name, one.tasks[task].get(name), two.tasks[task].get(name)) for name in ASKED]
    return [each for each in settings + own if each[1] != each[2]]
