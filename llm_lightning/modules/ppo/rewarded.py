"""A policy whose completions are rewarded: what is the same whether it then learns from them or not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.generation import end_tokens
from llm_lightning.models.heads import base_model
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.ppo.checks import check_rewards
from llm_lightning.modules.ppo.judging import judge
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Rollout
from llm_lightning.rewards import Reward, prepare_rewards
from llm_lightning.rollouts import Completion, EngineCallable, Key, RolloutEngine

HELD_OUT = 2**32
"""Begins the keys of random numbers for completions that are not trained on."""


class RewardedPolicy(LanguageModule):
    """Writes completions, and validates and predicts by their rewards.

    Args:
        backbone: the policy.
        rewards: what makes a completion good, by names of your own.
        rollout: how completions come about.
        engine: what writes them.
        kwargs: see `LanguageModule`.
    """

    batch_kind, monitor = "prompts", ("val/reward", "max")

    def __init__(
        self, backbone: Backbone, rewards: dict[str, Reward], rollout: Rollout, engine: EngineCallable, **kwargs: Any
    ) -> None:
        super().__init__(backbone=backbone, **kwargs)
        self.rewards = rewards
        self.rollout_settings, self.make_engine = rollout, engine
        self.engine: RolloutEngine | None = None
        self._validation: Averages | None = None

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        self.rollout_settings.check()
        check_rewards(self.rewards)

    def setup(self, stage: str) -> None:
        """Let rewards that can be wrong about people show how far, before any weight is read."""
        super().setup(stage)
        folder = None if self.trainer.fast_dev_run else Path(self.trainer.default_root_dir) / "judges"  # type: ignore[attr-defined]
        # One after the other: what the first has asked the others find in the folder.
        if self.trainer.is_global_zero:
            prepare_rewards(self.rewards, folder, self.print)
        self.trainer.strategy.barrier()
        prepare_rewards(self.rewards, folder, self.print)

    def configure_model(self) -> None:
        """Build the policy, and what writes with it."""
        super().configure_model()
        if self.engine is None:
            ends = end_tokens(base_model(self.model).generation_config)
            self.engine = self.make_engine(self.rollout_settings.sampling, ends, self.rollout_settings.num_slots)
            if callable(check := getattr(self.engine, "check", None)):
                check(self.tokenizer)

    def rollout(
        self, batch: Mapping[str, Any], keys: Sequence[Key], first_sample: int = 0
    ) -> tuple[list[Tensor], list[Completion]]:
        """The policy's completions, and for each its prompt.

        Args:
            batch: from a `PromptDataModule`.
            keys: of each prompt, from which those of its completions are made.
            first_sample: number of a prompt's first completion; others draw other completions.
        """
        assert self.engine is not None
        ids, mask = batch["prompt_ids"].cpu(), batch["attention_mask"].cpu().bool()
        prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
        samples = range(first_sample, first_sample + self.rollout_settings.num_samples)
        completions = self.engine.sample(self.model, prompts, [[(*key, one) for one in samples] for key in keys])
        return [prompt for prompt in prompts for _ in samples], completions

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reward the completions of held-out prompts, whose random numbers are the same at each validation."""
        if self._validation is None:
            self._validation = Averages(self.device)
        _, completions = self.rollout(batch, self._held_out_keys(batch))
        judge(self.rewards, batch, completions, self.tokenizer).add_to(self._validation, "val/reward", "val/reward")
        lengths = torch.tensor([len(completion.tokens) for completion in completions])
        self._validation.add("val/completion_length", lengths)

    def log_evaluation(self, name: str) -> None:
        """Log the mean rewards over all held-out prompts, by the same names in a test."""
        averages, self._validation = self._validation, None
        if averages is not None:
            self.log_dict(averages.means(self.ranks.sum))
            self.log("tokens", torch.tensor(self.tokens_seen, dtype=torch.float64))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Complete held-out prompts, with the rewards of each completion."""
        _, completions = self.rollout(batch, self._held_out_keys(batch))
        return judge(self.rewards, batch, completions, self.tokenizer).rows()

    def _held_out_keys(self, batch: dict[str, Any]) -> list[Key]:
        return [(HELD_OUT, self.rollout_settings.seed, number) for number in batch["numbers"]]
