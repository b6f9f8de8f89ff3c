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
    """

    prompts: list[Any]
    texts: list[str]
    rewards: dict[str, list[float]]
    total: Tensor

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
    rewards: Mapping[str, Reward], batch: Mapping[str, Any], completions: list[Completion], tokenizer: Any
) -> Judged:
    """Score the completions to a batch of a `PromptDataModule`, equally many to each prompt.

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
    return Judged(prompts, texts, given, total)
