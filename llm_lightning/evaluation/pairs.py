"""How often a reward model prefers what people preferred: pairs of conversations, in packed rows without padding."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lm_eval.models.utils import resolve_max_length
from tqdm import tqdm

from llm_lightning.errors import UserError
from llm_lightning.evaluation.contamination import TrainingTexts, clean_score, counted, look_for
from llm_lightning.evaluation.evaluate import Outcome
from llm_lightning.evaluation.harness import Engine
from llm_lightning.measuring.answers import Answers, key_of
from llm_lightning.measuring.statistics import bootstrap_interval, wilson_interval
from llm_lightning.models.attention.sharing import shared_tokens
from llm_lightning.models.completions import bounded_groups
from llm_lightning.models.heads import base_model
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.objectives.chunks import ROUNDING

TASK = "local_pairs"
VERSION = 1
METRIC, READING = "accuracy", "none"


class Pair(Protocol):
    """Two conversations that begin alike, of which people preferred one."""

    @property
    def chosen(self) -> list[int]:
        """Token ids of the whole conversation."""
        ...

    @property
    def rejected(self) -> list[int]:
        """The same of the other one."""
        ...

    @property
    def prompt(self) -> str:
        """Names what both answer; pairs that share it are not independent."""
        ...

    @property
    def hash(self) -> str:
        """Names the pair: by it those of two models are compared."""
        ...

    @property
    def written(self) -> str:
        """The chosen conversation as text."""
        ...

    @property
    def texts(self) -> list[str]:
        """What is said in both."""
        ...


class Judge:
    """A reward model that compares texts.

    Args:
        model: a `PreTrainedModel` with a head of one label.
        tokenizer: its own.
        fingerprint: names the weights; rewards of others are not taken over.
        seq_len: tokens of context; by default the network's. Longer conversations are cut at their beginning.
        engine: how the work is cut, which changes rewards by rounding alone.
        answers: of an earlier attempt, and where new ones are kept.

    Raises:
        UserError: `seq_len` is more than the network has.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        fingerprint: str,
        seq_len: int | None = None,
        engine: Engine | None = None,
        answers: Answers | None = None,
    ) -> None:
        own = resolve_max_length(base_model(model).config, tokenizer)
        if seq_len is not None and not 1 < seq_len <= own:
            raise UserError(f"seq_len={seq_len}: the model's context has {own} tokens; give 2 to {own}.")
        self.model, self.fingerprint = model, fingerprint
        self.max_length = seq_len or own
        self.engine, self.answers = engine or Engine(), answers or Answers()

    def rewards(self, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        """Rewards of the chosen and of the rejected conversation of each pair; every rank calls it."""
        texts = [self._texts(pair) for pair in pairs]
        keys = [key_of("rewards", self.fingerprint, *each) for each in texts]
        asked = dict(zip(keys, texts, strict=True))
        missing = list(self.engine.ranks.share([key for key in asked if key not in self.answers]))
        # The longest come first: if the memory suffices for their rows, it suffices for all.
        missing.sort(key=lambda key: -sum(map(len, asked[key])))
        own: dict[str, Any] = {}
        shown = self.engine.progress and self.engine.ranks.rank == 0 and missing
        with tqdm(total=len(missing), desc="Judging pairs", disable=not shown) as bar:
            for number, found in self._judge([asked[key] for key in missing]):
                own[missing[number]] = found
                self.answers.add(missing[number], found)
                bar.update()
        for others in self.engine.ranks.gather(own):
            self.answers.take(others)
        return [tuple(self.answers[key]) for key in keys]

    def is_cut(self, pair: Pair) -> bool:
        """Whether one of its conversations is longer than the context."""
        return max(len(pair.chosen), len(pair.rejected)) > self.max_length

    def _texts(self, pair: Pair) -> tuple[list[int], list[int]]:
        return pair.chosen[-self.max_length :], pair.rejected[-self.max_length :]

    @torch.no_grad()
    def _judge(self, texts: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[int, tuple[float, float]]]:
        for group in bounded_groups([len(c) + len(r) for c, r in texts], self.engine.row_tokens):
            batch = prepare_texts(packed([texts[number] for number in group]))
            found = rewards(self.model, {name: value.to(self.model.device) for name, value in batch.items()})
            columns = (found["chosen_ends"].tolist(), found["rejected_ends"].tolist())
            for number, (chosen, rejected) in zip(group, zip(*columns, strict=True), strict=True):
                # The same text at two places of a row may differ in its last bit.
                is_same = texts[number][0] == texts[number][1]
                yield number, (chosen, chosen if is_same else rejected)


def packed(texts: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """One row of pairs, as `prepare_texts` wants it: the second text of each takes over what the first begins with."""
    ids: list[np.ndarray] = []
    positions, spans = [], []
    ends: tuple[list[int], list[int]] = ([], [])
    length = 0
    for pair in texts:
        first, prompt = length, 0
        for which, text in enumerate(np.asarray(text, np.int64) for text in pair):
            prompt = shared_tokens(ids[-1], text[:-1]) if which else 0  # one token at least is a text's own
            own = text[prompt:]
            spans.append((0, length, length + len(own), first, first + prompt))
            ids.append(own)
            positions.append(np.arange(prompt, len(text)))
            length += len(own)
            ends[which].append(length - 1)
    padding = -length % ROUNDING
    if padding:
        spans.append((0, length, length + padding, 0, 0))
    return {
        "input_ids": torch.from_numpy(np.concatenate([*ids, np.zeros(padding, np.int64)]))[None],
        "position_ids": torch.from_numpy(np.concatenate([*positions, np.arange(padding)]))[None],
        "spans": torch.tensor(spans),
        "chosen_ends": torch.tensor(ends[0]),
        "rejected_ends": torch.tensor(ends[1]),
    }


def judged(
    judge: Judge, pairs: Sequence[Pair], limit: float | None = None, trained_on: Sequence[TrainingTexts] = ()
) -> Outcome:
    """A reward model's accuracy; every rank calls it, and has the whole outcome.

    Args:
        judge: the reward model.
        pairs: what people preferred.
        limit: the first so many pairs, below 1 that share of them.
        trained_on: in which pairs are looked for.
    """
    if limit is not None:
        pairs = pairs[: math.ceil(limit * len(pairs)) if limit < 1 else int(limit)]
    found = judge.rewards(pairs)
    # As in training: where both rewards are the same, it may as well have been right.
    values = np.array([0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in found])
    prompts = np.array([pair.prompt for pair in pairs])
    flags = look_for([pair.texts for pair in pairs], trained_on, judge.engine.ranks) if trained_on else None
    is_cut = [judge.is_cut(pair) for pair in pairs]
    value, low, high = _accuracy(values, prompts)
    score = {
        "metric": METRIC, "reading": READING, "value": value, "low": low, "high": high,
        "interval": "cluster bootstrap" if _repeat(prompts) else "wilson", "higher_is_better": True, "unparsed": None,
        "clean": clean_score(flags, lambda places: _accuracy(values[places], prompts[places])),
    }  # fmt: skip
    task = {
        "num_items": len(pairs), "version": VERSION, "output": "rewards", "first_prompt": pairs[0].written,
        "num_fewshot": None, "max_new_tokens": None, "truncated": sum(is_cut), **counted(flags),
        "equal_rewards": int((values == 0.5).sum()), "scores": [score],
    }  # fmt: skip
    rows = [
        {
            "task": TASK, "item": number, "item_hash": pair.hash, "cluster": pair.prompt, "metric": METRIC,
            "reading": READING, "value": values[number].item(), "answer": json.dumps(found[number]), "parsed": None,
            "truncated": is_cut[number], "num_tokens": None, "contaminated": flags and flags[number],
        }
        for number, pair in enumerate(pairs)
    ]  # fmt: skip
    return Outcome({TASK: task}, rows)


def _accuracy(values: np.ndarray, prompts: np.ndarray) -> tuple[float, float, float]:
    """The share of pairs that are right, and its interval."""
    if _repeat(prompts):
        return float(values.mean()), *bootstrap_interval(values, prompts.tolist())
    return float(values.mean()), *wilson_interval(values.sum(), len(values))


def _repeat(prompts: np.ndarray) -> bool:
    return len(set(prompts.tolist())) < len(prompts)
