"""The completions of a batch as texts, and what the rewards give to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.rewards import Reward, score
from llm_lightning.rollouts import Completion


class Judged(NamedTuple):
    """B completions.

    Args:
        prompts, texts: as the rewards see them.
        rewards: for each reward by name B numbers, and for what it is made of, as `NAME/PART`.
        total: (B,) float32, their weighted sum.
        scores: (B,) float32, the sum less the penalty for what has no end.
    """

    prompts: list[Any]
    texts: list[str]
    rewards: dict[str, list[float]]
    total: Tensor
    scores: Tensor

    def put(self, rows: slice, other: "Judged", others: slice) -> None:
        """Let completions of another one, to the same prompts, take the place of some of these."""
        self.texts[rows] = other.texts[others]
        for name, values in self.rewards.items():
            values[rows] = other.rewards[name][others]
        self.total[rows], self.scores[rows] = other.total[others], other.scores[others]

    def add_to(self, averages: Averages, prefix: str, total: str) -> None:
        """Count each reward as `PREFIX/NAME`, and their sum under the name `total`."""
        for name, values in self.rewards.items():
            averages.add(f"{prefix}/{name}", torch.tensor(values, dtype=torch.float64))
        averages.add(total, self.total)

    def rows(self) -> list[dict[str, Any]]:
        """A table of all."""
        given = [dict(zip(self.rewards, values, strict=True)) for values in zip(*self.rewards.values(), strict=True)]
        triples = zip(self.prompts, self.texts, given, strict=True)
        return [{"prompt": prompt, "continuation": text, "rewards": values} for prompt, text, values in triples]


def judge(
    rewards: Mapping[str, Reward],
    batch: Mapping[str, Any],
    completions: list[Completion],
    tokenizer: Any,
    missing_eos_penalty: float = 0.0,
) -> Judged:
    """Score the completions to a batch of a `PromptDataModule`, equally many to each prompt.

    Args:
        rewards: by name.
        batch: of prompts.
        completions: to them.
        tokenizer: the policy's.
        missing_eos_penalty: what the score of one without an end loses.

    Raises:
        RewardError: see `score`.
    """
    texts, as_written = (
        [tokenizer.decode(completion.tokens, skip_special_tokens=skip) for completion in completions]
        for skip in (True, False)
    )
    num_samples = len(texts) // max(1, len(batch["prompts"]))
    prompts = [prompt for prompt in batch["prompts"] for _ in range(num_samples)]
    columns = {name: [v for v in values for _ in range(num_samples)] for name, values in batch["columns"].items()}
    given = score(rewards, prompts, texts, columns, as_written)
    total = torch.zeros(len(texts), dtype=torch.float32)
    for name, reward in rewards.items():
        total += reward.weight * torch.tensor(given[name], dtype=torch.float32)
    unfinished = torch.tensor([not completion.is_finished for completion in completions], dtype=torch.float32)
    return Judged(prompts, texts, given, total, total - missing_eos_penalty * unfinished)
