"""Two models' answers side by side, and what is too far apart."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_lightning.export.proof.asking import Answers
from llm_lightning.export.proof.limits import Limits

SHOWN = 60


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        same_ids: of how many texts the token ids are equal.
        same_chats: of how many conversations the rendered texts are equal; None where neither has a template.
        max_difference: the largest of all logits, of a reward model of all rewards.
        kl: Kullback-Leibler divergence of the next token from the trained model's, in nats, the mean over positions.
        max_kl: at the worst position.
        same_written: how many greedy tokens are equal before the first other one, in all.
        perplexity: on the text.
        perplexity_increase: over the trained model's, as a share of it.
    """

    num_texts: int
    same_ids: int
    num_chats: int
    same_chats: int | None
    max_difference: float
    kl: float | None = None
    max_kl: float | None = None
    num_written: int | None = None
    same_written: int | None = None
    perplexity: float | None = None
    trained_perplexity: float | None = None
    perplexity_increase: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def compare(
    trained: Answers, other: Answers, texts: list[str], limits: Limits, may_differ: Collection[str] = ()
) -> tuple[Comparison, list[str]]:
    """What was found, and the reasons to refuse it.

    Args:
        trained: the model's own answers.
        other: those of what was written.
        texts: that were asked, to name the first one whose token ids differ.
        limits: that the differences must not pass.
        may_differ: those of the texts that the token ids are not compared of.
    """
    reasons: list[str] = []
    ids = [
        mine == its or text in may_differ
        for text, mine, its in zip(texts, trained.said["ids"], other.said["ids"], strict=True)
    ]
    if not all(ids):
        reasons.append(_other_ids(trained.said["ids"], other.said["ids"], texts, ids))
    chats = [mine == its for mine, its in zip(trained.said["chats"], other.said["chats"], strict=True)]
    if not all(chats):
        reasons.append(_other_chat(trained.said["chats"], other.said["chats"], chats))
    found: dict[str, Any] = {
        "num_texts": len(ids),
        "same_ids": sum(ids),
        "num_chats": len(chats),
        "same_chats": None if not any(trained.said["chats"]) and all(chats) else sum(chats),
    }
    if "rewards" in trained.said:
        return Comparison(**found | _rewards(trained, other, limits, reasons)), reasons
    found |= _logits(trained, other, reasons) | _written(trained, other) | _perplexity(trained, other)
    for what, name, limit in (
        ("KL", "kl", "max_kl"),
        ("perplexity rises", "perplexity_increase", "max_perplexity_increase"),
    ):
        if found.get(name) is not None and not found[name] <= getattr(limits, limit):  # not a number is no pass
            reasons.append(_passed(what, found[name], limit, limits))
    return Comparison(**found), reasons


def _passed(what: str, value: float, limit: str, limits: Limits) -> str:
    return f"{what} by {value:.4g}, more than {limit} {getattr(limits, limit):g}"


def _other_ids(mine: list[list[int]], its: list[list[int]], texts: list[str], same: list[bool]) -> str:
    number = same.index(False)
    pairs = zip(mine[number], its[number], strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(mine[number]), len(its[number])))
    return (
        f"token ids differ for {same.count(False)} of {len(same)} texts, first for {texts[number][:SHOWN]!r}: from "
        f"token {place} on {its[number][place : place + 4]} in the place of {mine[number][place : place + 4]}"
    )


def _other_chat(mine: list[str | None], its: list[str | None], same: list[bool]) -> str:
    number = same.index(False)
    if its[number] is None:
        return "the chat template is missing"
    return f"the chat template renders {str(its[number])[:SHOWN]!r} in the place of {str(mine[number])[:SHOWN]!r}"


def _rewards(trained: Answers, other: Answers, limits: Limits, reasons: list[str]) -> dict[str, Any]:
    largest = float(np.abs(np.subtract(trained.said["rewards"], other.said["rewards"])).max())
    spread = float(np.std(trained.said["rewards"]))
    if not largest <= limits.max_reward_difference * spread:
        reasons.append(
            f"rewards differ by up to {largest:.4g}, more than {limits.max_reward_difference:g} of their standard "
            f"deviation, {spread:.4g}"
        )
    return {"max_difference": largest}


def _logits(trained: Answers, other: Answers, reasons: list[str]) -> dict[str, Any]:
    assert trained.logits is not None and other.logits is not None
    width = min(trained.logits.shape[1], other.logits.shape[1])
    if len(trained.logits) != len(other.logits):
        reasons.append(f"it answers {len(other.logits)} positions in the place of {len(trained.logits)}")
        return {"max_difference": math.nan, "kl": math.nan, "max_kl": math.nan}
    # Rows that fill up a vocabulary may be cut off; what probability they had counts.
    pairs = list(zip(trained.logits, other.logits, strict=True))
    of = _log_softmax if other.said.get("are_log_probabilities") else np.asarray
    apart = [np.abs(of(mine)[:width] - its[:width]).max() for mine, its in pairs]
    divergences = [_kl(mine.astype(np.float64), its.astype(np.float64), width) for mine, its in pairs]
    # numpy's, for which what is not a number is the largest.
    return {
        "max_difference": float(np.max(apart)),
        "kl": float(np.mean(divergences)),
        "max_kl": float(np.max(divergences)),
    }


def _kl(mine: np.ndarray, its: np.ndarray, width: int) -> float:
    own, other = _log_softmax(mine)[:width], _log_softmax(its)[:width]
    return float(np.maximum((np.exp(own) * (own - other)).sum(), 0.0))  # rounding may leave less


def _log_softmax(row: np.ndarray) -> np.ndarray:
    row = row - row.max()
    return np.asarray(row - np.log(np.exp(row).sum()))


def _written(trained: Answers, other: Answers) -> dict[str, Any]:
    num, same = 0, 0
    for mine, its in zip(trained.said["written"], other.said["written"], strict=True):
        num += len(mine)
        same += next((n for n, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), min(len(mine), len(its)))
    speeds = {name: other.said[name] for name in ("prefill_tokens_per_s", "decode_tokens_per_s")}
    return {"num_written": num, "same_written": same} | speeds


def _perplexity(trained: Answers, other: Answers) -> dict[str, Any]:
    if trained.said["loss"] is None or other.said["loss"] is None:
        return {}
    mine, its = trained.said["loss"], other.said["loss"]
    return {
        "perplexity": math.exp(min(its, 700.0)),
        "trained_perplexity": math.exp(min(mine, 700.0)),
        "perplexity_increase": math.expm1(min(its - mine, 700.0)),
    }
