"""From what lm-eval logs of each item to scores with intervals, and to a row for each item."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_lightning.evaluation.contamination import clean_score, counted
from llm_lightning.measuring.statistics import bootstrap_interval, wilson_interval

INVALID = "[invalid]"
"""What lm-eval's filters give where they find nothing."""

NUM_RESAMPLES = 1000
"""For aggregates that are no mean, each of which costs a call of lm-eval's own function."""

LIKELIHOODS: dict[str, Callable[[float], float]] = {
    "word_perplexity": lambda nll: math.exp(min(nll, 700)),
    "byte_perplexity": lambda nll: math.exp(min(nll, 700)),
    "bits_per_byte": lambda nll: nll / math.log(2),
    "perplexity": lambda nll: math.exp(min(nll, 700)),
}
"""Scores that rise with a mean negative log-likelihood, by how they come from it."""


@dataclass(frozen=True)
class ItemScores:
    """One metric and reading of a task.

    Args:
        values: of each item, (N,) float64; not a number where an item alone has no score.
        low, high, value: of the whole task.
        interval: how they were found.
    """

    values: np.ndarray
    value: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True)
class Judged:
    """Who judged the answers to a task.

    Args:
        by: in words; None where the task does not say.
        prompt: what the judge was asked.
        unreadable: by metric, items that are left out of it, as the judge said neither yes nor no.
    """

    by: str | None
    prompt: str | None = None
    unreadable: Counter[str] = field(default_factory=Counter)


def score(
    metric: str, given: Sequence[Any], aggregate: Callable[[Any], Any], clusters: Sequence[str | None]
) -> ItemScores:
    """The score of a task with its interval.

    Args:
        metric: its name.
        given: what the task says of each item (N).
        aggregate: lm-eval's function from these to the score.
        clusters: what items share with others (N), None where an item stands for itself.
    """
    value = float(aggregate(list(given)))
    own = [cluster if cluster is not None else f"\0{place}" for place, cluster in enumerate(clusters)]
    is_clustered = len(set(own)) < len(own)
    kind = "cluster bootstrap" if is_clustered else "bootstrap"
    means, weights = _means(metric, given)
    to_score = LIKELIHOODS.get(metric, float)
    if not np.isfinite(means).all() or not _is(to_score(float(np.average(means, weights=weights))), value):
        numbers = np.array([_number(each) for each in given])
        return ItemScores(numbers, value, *_resampled(given, aggregate, own), kind)
    values = np.array([to_score(each) for each in means.tolist()])
    if not is_clustered and (weights == 1).all() and np.isin(means, (0, 1)).all():
        return ItemScores(values, value, *wilson_interval(means.sum(), len(means)), "wilson")
    low, high = map(to_score, bootstrap_interval(means, own if is_clustered else None, weights))
    return ItemScores(values, value, low, high, kind)


def _means(metric: str, given: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """What is averaged over items, and with which weights."""
    sign = -1.0 if metric in LIKELIHOODS else 1.0
    pairs = []
    for each in given:
        if isinstance(each, tuple) and len(each) == 2 and metric in LIKELIHOODS:
            pairs.append((float(each[0]) / each[1] if each[1] else math.nan, float(each[1])))
        elif isinstance(each, list) and each and all(isinstance(one, int | float) for one in each):
            pairs.append((sum(each) / len(each), float(len(each))))
        else:
            pairs.append((_number(each), 1.0))
    means, weights = np.array(pairs, float).T
    return sign * means, weights


def _number(value: Any) -> float:
    return float(value) if isinstance(value, bool | int | float | np.number) else math.nan


def _is(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(1.0, abs(other))


def _resampled(given: Sequence[Any], aggregate: Callable[[Any], Any], clusters: Sequence[str]) -> tuple[float, float]:
    """Percentiles of the score over draws of clusters."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, cluster in enumerate(clusters):
        members[cluster].append(place)
    groups, generator = list(members.values()), np.random.default_rng(0)
    if len(groups) < 2:
        return math.nan, math.nan
    found = []
    for _ in range(NUM_RESAMPLES):
        drawn = generator.integers(0, len(groups), len(groups))
        found.append(float(aggregate([given[place] for group in drawn for place in groups[group]])))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def task_scores(
    task: Any,
    samples: Sequence[dict[str, Any]],
    written: Callable[[dict[str, Any]], dict[str, Any] | None],
    judged: Judged,
    contaminated: Mapping[int, bool | None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `results.json` says of a task, and the rows of its items.

    Args:
        task: lm-eval's.
        samples: what lm-eval logged of it, one for each item and reading.
        written: of a sample, what is known of its written answer; None where nothing was written.
        judged: who judged the answers.
        contaminated: by the item's number, whether the training data have it; None where nobody has looked.
    """
    cluster_column = (task.config.metadata or {}).get("cluster")
    answers = {sample["doc_id"]: written(sample) for sample in samples}
    by_score: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for sample in sorted(samples, key=lambda one: one["doc_id"]):
        for metric in sample["metrics"]:
            by_score[metric, sample["filter"]].append(sample)
    scores, rows = [], []
    for (metric, reading), each in by_score.items():
        clusters = [_cluster(sample, cluster_column) for sample in each]
        flags = None if contaminated is None else [contaminated[sample["doc_id"]] for sample in each]
        found, values = _scored(task, metric, reading, each, clusters, flags, judged)
        scores.append(found)
        for place, (sample, value) in enumerate(zip(each, values, strict=True)):
            row = _row(task, sample, metric, reading, value, clusters[place], answers[sample["doc_id"]])
            rows.append(row | {"contaminated": None if flags is None else flags[place]})
    known = [answer for answer in answers.values() if answer is not None]
    result = {
        "num_items": len(answers),
        "version": task.VERSION,
        "output": str(task.OUTPUT_TYPE),
        "first_prompt": _first_prompt(samples),
        "num_fewshot": task.get_config("num_fewshot"),
        "max_new_tokens": max((answer["max_new_tokens"] for answer in known), default=None),
        "truncated": sum(answer["truncated"] for answer in known) if known else None,
        **counted(None if contaminated is None else contaminated.values()),
        "judged_by": judged.by,
        "judge_prompt": judged.prompt,
        "scores": scores,
    }
    return result, rows


def _scored(
    task: Any,
    metric: str,
    reading: str,
    samples: Sequence[dict[str, Any]],
    clusters: Sequence[str | None],
    flags: Sequence[bool | None] | None,
    judged: Judged,
) -> tuple[dict[str, Any], list[float]]:
    """What `results.json` says of a score, and the items' own scores."""
    given, aggregate = [sample[metric] for sample in samples], task.aggregation()[metric]
    found = score(metric, given, aggregate, clusters)

    def of_some(places: list[int]) -> tuple[float, float, float]:
        some = score(metric, [given[i] for i in places], aggregate, [clusters[i] for i in places])
        return some.value, some.low, some.high

    result = {
        "metric": metric,
        "reading": reading,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "interval": found.interval,
        "higher_is_better": bool(task.higher_is_better().get(metric, True)),
        "unparsed": judged.unreadable[metric] if judged.prompt else _num_unparsed(task, reading, samples),
        "clean": clean_score(flags, of_some),
    }
    return result, found.values.tolist()


def _first_prompt(samples: Sequence[dict[str, Any]]) -> str:
    first = min(samples, key=lambda sample: sample["doc_id"])
    return str(first["arguments"][0][0])


def _cluster(sample: dict[str, Any], column: str | None) -> str | None:
    value = sample["doc"].get(column) if column is not None else None
    return None if value is None else str(value)


def _num_unparsed(task: Any, reading: str, samples: Sequence[dict[str, Any]]) -> int | None:
    """How many answers a filter found nothing in; None where this reading has no filter that could."""
    filters = {each["name"]: each["filter"] for each in task.config.filter_list or ()}
    if not any("regex" in str(step.get("function")) for step in filters.get(reading, ())):
        return None
    return sum(_parsed(sample) is None for sample in samples)


def _parsed(sample: dict[str, Any]) -> str | None:
    first = sample["filtered_resps"][0]
    text = first if isinstance(first, str) else json.dumps(first, default=str)
    return None if text == INVALID else text


def _row(
    task: Any,
    sample: dict[str, Any],
    metric: str,
    reading: str,
    value: float,
    cluster: str | None,
    answer: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "task": task.task_name,
        "item": sample["doc_id"],
        "item_hash": sample["doc_hash"],
        "cluster": cluster,
        "metric": metric,
        "reading": reading,
        "value": value,
        "answer": _answer(task, sample),
        "parsed": None if answer is None else _parsed(sample),
        "truncated": None if answer is None else answer["truncated"],
        "num_tokens": None if answer is None else answer["num_tokens"],
    }


def _answer(task: Any, sample: dict[str, Any]) -> str:
    """What was written, or the letter of the option that was chosen, else the log-probability."""
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = [one for one, _ in _pairs(sample["filtered_resps"])]
        options = len(task.doc_to_choice(sample["doc"])) if task.config.doc_to_choice else len(likelihoods)
        chosen = int(np.argmax(likelihoods[:options]))
        return chr(ord("A") + chosen) if options <= 26 else str(chosen)
    return json.dumps(first)


def _pairs(responses: Sequence[Any]) -> Iterator[tuple[float, bool]]:
    for each in responses:
        yield each if len(each) == 2 else each[0]
