"""Groups of completions that teach nothing are drawn again: the dynamic sampling of DAPO (arXiv:2503.14476).

Where all completions to a prompt have the same score, a baseline over the group leaves them without advantage. DAPO
then takes other prompts, until its batch is full. Here the same prompts are asked again, up to a bound: a step is one
batch of the data, whatever its completions are, and a resumed run reads on at the same prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llm_lightning.modules.ppo.judging import Judged
from llm_lightning.rollouts import Completion, Key

Draw = Callable[[Mapping[str, Any], Sequence[Key], int], tuple[list[Completion], Judged]]
"""Writes to a batch's prompts with these keys, the first sample having this number, and scores what was written."""


def resample(
    draw: Draw,
    batch: Mapping[str, Any],
    keys: Sequence[Key],
    completions: list[Completion],
    judged: Judged,
    max_resamples: int,
    count_all: Callable[[int], int],
) -> tuple[list[Completion], Judged, int]:
    """The completions and their scores, those of equal groups drawn again.

    Args:
        draw: every rank calls it equally often, if for no prompt.
        batch: of prompts.
        keys: of each prompt.
        completions, judged: what was drawn first, equally many to each prompt.
        max_resamples: how often a group is drawn again at most; one that is equal still stays as it was first.
        count_all: adds up a count over the ranks, each of which has prompts of its own.

    Returns:
        Completions, scores, and how many groups of this rank others took the place of.
    """
    num_samples = len(completions) // max(1, len(keys))
    completions, num_mended = list(completions), 0
    left = equal_groups(judged.scores, num_samples)
    for number in range(1, max_resamples + 1):
        if not count_all(len(left)):
            break
        fresh, fresh_judged = draw(_only(batch, left), [keys[group] for group in left], number * num_samples)
        still = set(equal_groups(fresh_judged.scores, num_samples))
        for place, group in enumerate(left):
            if place not in still:
                ours, theirs = (slice(n * num_samples, (n + 1) * num_samples) for n in (group, place))
                completions[ours] = fresh[theirs]
                judged.put(ours, fresh_judged, theirs)
                num_mended += 1
        left = [group for place, group in enumerate(left) if place in still]
    return completions, judged, num_mended


def equal_groups(scores: torch.Tensor, num_samples: int) -> list[int]:
    """The numbers of the groups whose scores (B,) are all the same."""
    if not len(scores):
        return []
    groups = scores.view(-1, num_samples)
    return (groups.amax(1) == groups.amin(1)).nonzero().flatten().tolist()


def _only(batch: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    columns = {name: [values[place] for place in places] for name, values in batch["columns"].items()}
    tensors = {name: batch[name][places] for name in ("prompt_ids", "attention_mask")}
    return {"prompts": [batch["prompts"][place] for place in places], "columns": columns, **tensors}
