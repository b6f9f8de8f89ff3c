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
from llm_lightning.modules.base import STATE_KEY, LanguageModule
from llm_lightning.modules.ppo.ahead import RolloutAhead
from llm_lightning.modules.ppo.checks import check_engine, check_rewards
from llm_lightning.modules.ppo.judging import judge
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Rollout
from llm_lightning.rewards import Reward, prepare_rewards
from llm_lightning.rollouts import AsynchronousEngine, Completion, EngineCallable, Key, RolloutEngine

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
        self.ahead = RolloutAhead()
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
            check_engine(self.engine, self.rollout_settings)

    def keys(self, batch: Mapping[str, Any], step: int) -> list[Key]:
        """Of this rank's prompts in a training step."""
        first, count = self._first_place(batch), len(batch["prompts"])
        return [(self.rollout_settings.seed, step, place) for place in range(first, first + count)]

    def training_rollout(
        self, batch: Mapping[str, Any], keys: Sequence[Key], step: int
    ) -> tuple[list[Tensor], list[Completion]]:
        """As `rollout`. With `staleness` they were written during the step before, and those of the next are begun."""
        if not self.rollout_settings.staleness:
            return self.rollout(batch, keys)
        prompts, num_samples = _prompts(batch), self.rollout_settings.num_samples
        written = self.ahead.take(prompts, self._first_place(batch))
        if written is None:
            written = self.rollout(batch, keys)[1]
        if step + 1 < self.trainer.estimated_stepping_batches:
            assert isinstance(self.engine, AsynchronousEngine)
            following = self.trainer.datamodule.next_batch()  # type: ignore[attr-defined]
            wanted, next_keys = _prompts(following), self.keys(following, step + 1)
            write = self.engine.begin(self.model, wanted, _of_samples(next_keys, range(num_samples)))
            self.ahead.begin(write, wanted, self.device.type)
        return [prompt for prompt in prompts for _ in range(num_samples)], written

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
        self.ahead.wait()
        prompts = _prompts(batch)
        samples = range(first_sample, first_sample + self.rollout_settings.num_samples)
        completions = self.engine.sample(self.model, prompts, _of_samples(keys, samples))
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is written already for the next step."""
        super().on_save_checkpoint(checkpoint)
        if self.rollout_settings.staleness:
            checkpoint[STATE_KEY]["rollout_ahead"] = self.ahead.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what was written."""
        super().on_load_checkpoint(checkpoint)
        if self.rollout_settings.staleness and (state := checkpoint[STATE_KEY].get("rollout_ahead")):
            self.ahead.load_state_dict(state)

    def _held_out_keys(self, batch: dict[str, Any]) -> list[Key]:
        return [(HELD_OUT, self.rollout_settings.seed, number) for number in batch["numbers"]]

    def _first_place(self, batch: Mapping[str, Any]) -> int:
        return self.trainer.global_rank * len(batch["prompts"])


def _prompts(batch: Mapping[str, Any]) -> list[Tensor]:
    ids, mask = batch["prompt_ids"].cpu(), batch["attention_mask"].cpu().bool()
    return [row[real] for row, real in zip(ids, mask, strict=True)]


def _of_samples(keys: Sequence[Key], samples: range) -> list[list[Key]]:
    return [[(*key, one) for one in samples] for key in keys]
