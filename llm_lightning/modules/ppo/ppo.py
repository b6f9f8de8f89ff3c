"""Proximal policy optimization (arXiv:1707.06347, arXiv:2203.02155), and GRPO and RLOO by another advantage.

One training step is one rollout and all the updates that it is used for: `rollout`, `judge`, `evaluate`,
`estimate_advantages`, `update`.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.completions import Critic, states_and_logprobs
from llm_lightning.modules.base import STATE_KEY
from llm_lightning.modules.gradients import gradient_norm
from llm_lightning.modules.ppo import checks
from llm_lightning.modules.ppo.advantages import estimate_advantages
from llm_lightning.modules.ppo.critic import build_critic, critic_groups
from llm_lightning.modules.ppo.experience import Experience
from llm_lightning.modules.ppo.guards import Guards, Watch
from llm_lightning.modules.ppo.judging import Judged, judge
from llm_lightning.modules.ppo.kl_control import KLCoefficient
from llm_lightning.modules.ppo.loss import token_losses
from llm_lightning.modules.ppo.metrics import Averages, Phases, measure
from llm_lightning.modules.ppo.resampling import resample
from llm_lightning.modules.ppo.rewarded import RewardedPolicy
from llm_lightning.modules.ppo.settings import Advantages, CriticSettings, KLPenalty, Rollout, Update
from llm_lightning.modules.reference import Reference, frozen_copy, switch_off_dropout
from llm_lightning.modules.step import Totals
from llm_lightning.objectives import policy
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import Completion, EngineCallable, Key, Sampler


class PPO(RewardedPolicy):
    """Aligns a policy with rewards, in full or by an adapter (`peft`).

    `trainer.max_steps`, schedules and checkpoints count rollouts with all of their updates as one step.

    Args:
        backbone: the policy.
        rewards: what makes a completion good, by names of your own.
        optimizer: any torch optimizer by `class_path`; by default AdamW without decay, with the epsilon of PPO.
        rollout: how completions come about.
        engine: what writes them, by the `class_path` of a `RolloutEngine`; by default our own sampler, in this process.
        advantages: from their scores to what each token is worth.
        critic: who expects the rewards, of `gae`.
        kl: cost of leaving the reference.
        update: how a rollout is trained on.
        guards: signs of a run going wrong.
        kwargs: see `LanguageModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        rewards: dict[str, Reward],
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(
            params, lr=3e-6, eps=1e-5, weight_decay=0.0, fused=True
        ),
        rollout: Rollout = Rollout(),  # noqa: B008 (read only)
        engine: EngineCallable = Sampler,
        advantages: Advantages = Advantages(),  # noqa: B008
        critic: CriticSettings = CriticSettings(),  # noqa: B008
        kl: KLPenalty = KLPenalty(),  # noqa: B008
        update: Update = Update(),  # noqa: B008
        guards: Guards = Guards(),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone=backbone, rewards=rewards, rollout=rollout, engine=engine, optimizer=optimizer, **kwargs
        )
        self.automatic_optimization = False
        self.gradient_clip_val: float | None = 1.0
        self.advantage_settings, self.critic_settings = advantages, critic
        self.kl, self.update_settings = kl, update
        # The logprobs of the policy that wrote are then known from the update's only pass, before it changes anything.
        self.updates_once = (
            update.epochs * update.num_minibatches == 1 and advantages.kind != "gae" and not kl.in_reward
        )
        self.guards, self.watch = guards, Watch(guards)
        self.kl_coef, self.num_updates = KLCoefficient(kl), 0
        self.critic: Critic | None = None
        self.samples: list[dict[str, Any]] = []
        self._reference: list[Reference] = []  # a list: no submodule, which would be in the checkpoint
        self.score_moments: Tensor
        self.register_buffer("score_moments", torch.zeros(3, dtype=torch.float64))

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        rollout, update = self.rollout_settings, self.update_settings
        for group in (self.advantage_settings, self.critic_settings, self.kl, update):
            group.check()
        self.guards.check({name: reward.weight for name, reward in self.rewards.items()})
        checks.check_adapter(self.peft)
        checks.check_advantages(self.advantage_settings, rollout, self.backbone)
        if datamodule is not None:
            checks.check_data(datamodule, self.rewards, rollout, update, self.backbone)

    def configure_model(self) -> None:
        """Build policy, reference and critic."""
        if self.model is not None:
            return
        self.model = self.build_network(self.backbone)
        can_take_adapter_off = self.peft is not None and not isinstance(self.peft, BottleneckConfig)
        frozen = None if can_take_adapter_off or not self.kl.coef else frozen_copy(self.model)
        super().configure_model()
        if self.kl.coef:
            if self.sharding is not None and frozen is not None:
                self.shard_and_load(self.backbone, frozen)
            self._reference = [Reference(self.model, frozen)]
        if self.advantage_settings.kind == "gae":
            self.critic = build_critic(self, self.critic_settings, self.backbone, self.model)
        switch_off_dropout(self)

    def to(self, *args: Any, **kwargs: Any) -> "PPO":
        """Move or cast; under `bf16-true` what adds up small steps keeps its precision."""
        super().to(*args, **kwargs)
        self.score_moments = self.score_moments.double()
        if self.critic is not None:
            self.critic.head.float()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of policy and critic, for one optimizer."""
        critic = [] if self.critic is None else critic_groups(self.critic, self.critic_settings)
        return [*super().parameter_groups(), *critic]

    def on_fit_start(self) -> None:
        """Refuse what would train wrongly, and say what trains."""
        checks.check_trainer(self.trainer, self.rollout_settings)
        super().on_fit_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One rollout and its updates."""
        averages, phases = Averages(self.device), Phases(self.device)
        num_samples = self.rollout_settings.num_samples
        with phases("rollout"):
            keys = self.keys(batch, self.num_updates)
            prompts, completions = self.training_rollout(batch, keys, self.num_updates)
        with phases("reward"):
            judged = self.judge(batch, completions)
            judged.add_to(averages, "reward", "train/reward")
        if self.rollout_settings.max_resamples:
            with phases("resample"):
                completions, judged = self.resample(batch, keys, completions, judged, averages)
        self.samples = judged.rows()
        experience = self.scored(prompts, completions, judged)
        with phases("evaluate"):
            self.evaluate(experience)
        with phases("advantage"):
            metrics = estimate_advantages(
                experience, self.advantage_settings, self.kl, self.kl_coef.value, num_samples, self.ranks
            )
        with phases("update"):
            metrics |= self.update(experience, averages)
        measure(experience, averages, num_samples, has_reference=bool(self._reference))
        self.finish(metrics | averages.means(self.ranks.sum), phases, self.trainer.world_size * len(prompts))

    def judge(self, batch: Mapping[str, Any], completions: list[Completion]) -> Judged:
        """What the rewards give to the completions, and their scores."""
        penalty = self.rollout_settings.missing_eos_penalty
        return judge(self.rewards, batch, completions, self.tokenizer, penalty)

    def resample(
        self, batch: dict[str, Any], keys: list[Key], completions: list[Completion], judged: Judged, averages: Averages
    ) -> tuple[list[Completion], Judged]:
        """See `resampling.resample`."""

        def draw(part: Mapping[str, Any], keys: Sequence[Key], first: int) -> tuple[list[Completion], Judged]:
            fresh = self.rollout(part, keys, first)[1]
            return fresh, self.judge(part, fresh)

        def count_all(count: int) -> int:
            return int(self.ranks.sum(torch.tensor(float(count), device=self.device)))

        most = self.rollout_settings.max_resamples
        completions, judged, num_mended = resample(draw, batch, keys, completions, judged, most, count_all)
        averages.add("rollout/resampled_groups", torch.arange(len(keys)) < num_mended)
        return completions, judged

    def scored(self, prompts: list[Tensor], completions: list[Completion], judged: Judged) -> Experience:
        """The completions with their scores, in units of their deviation where that is wanted."""
        is_off_policy = getattr(self.engine, "is_inexact", False) or self.rollout_settings.staleness > 0
        experience = Experience(prompts, completions, judged.scores.to(self.device), is_off_policy)
        if self.advantage_settings.scale_rewards:
            self.score_moments += self.ranks.sum(policy.moments(experience.scores))
            experience.scores /= policy.mean_and_std(self.score_moments)[1].float() + policy.EPS
        if self.critic is not None and self.num_updates == 0:
            self.critic.expect(float(policy.mean_and_std(self.ranks.sum(policy.moments(experience.scores)))[0]))
        return experience

    @torch.no_grad()
    def evaluate(self, experience: Experience) -> None:
        """Put in what policy, reference and critic make of each token, in passes like those of the update."""
        temperature = self.rollout_settings.sampling.temperature
        for rows in self._groups(experience, range(len(experience.prompts))):
            packed = experience.packed(rows)
            if not self.updates_once:
                states, own = states_and_logprobs(self.model, packed, temperature)
                experience.put(rows, logprobs=own.logprobs, entropies=own.entropies)
                if self.critic is not None:
                    experience.put(rows, values=self.critic(packed, states))
            for reference in self._reference:
                with reference.policy() as other:
                    _, ref = states_and_logprobs(other, packed, temperature, with_entropies=False)
                experience.put(rows, ref_logprobs=ref.logprobs)
        # Autocast keeps the weights that it casts, and these have no gradient.
        torch.clear_autocast_cache()

    def update(self, experience: Experience, averages: Averages) -> dict[str, float]:
        """Learn from the experience, epoch by epoch; each minibatch is one `OptimizerStep`."""
        settings = self.update_settings
        generator = np.random.default_rng((self.rollout_settings.seed, self.num_updates))
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size
        plan = experience.plan(settings.epochs, settings.num_minibatches, rank, num_ranks, generator)
        counts = torch.stack([experience.mask[rows].sum() for rows in plan]).double()
        norms: list[float] = []
        for rows, num_tokens in zip(plan, self.ranks.sum(counts).tolist(), strict=True):
            divisor = num_tokens if settings.average == "tokens" else float(len(rows) * num_ranks)
            totals = self._accumulate(experience, rows, divisor, averages)
            update_kl = totals.sums["kl"] / num_tokens
            if norms and settings.max_update_kl is not None and update_kl > settings.max_update_kl:
                self.optimizers(use_pl_optimizer=False).zero_grad(set_to_none=True)  # type: ignore[union-attr]
                break
            self._optimizer_step(totals, is_first=not norms)
            norms.append(totals.grad_norm)
        return {"train/grad_norm": norms[0], "train/num_optimizer_steps": float(len(norms))}

    def loss(self, experience: Experience, rows: Sequence[int], averages: Averages) -> tuple[Tensor, Tensor]:
        """Of these rows, the loss summed over tokens, and without gradient the KL from the policy that wrote them."""
        packed = experience.packed(rows)
        temperature = self.rollout_settings.sampling.temperature
        with_entropies = self.update_settings.entropy_coef > 0 or self.updates_once
        states, now = states_and_logprobs(self.model, packed, temperature, with_entropies=with_entropies)
        if self.updates_once:
            experience.put(rows, logprobs=now.logprobs.detach(), entropies=now.entropies.detach())
        values = None if self.critic is None else self.critic(packed, states)
        settings = self.update_settings, self.kl, self.critic_settings
        max_tokens = self.rollout_settings.sampling.max_new_tokens
        losses, kl = token_losses(now, values, experience, rows, settings, self.kl_coef.value, max_tokens, averages)
        return losses.sum(), kl.sum()

    def finish(self, metrics: dict[str, float], phases: Phases, num_completions: int) -> None:
        """Count, adapt the KL coefficient, log and watch."""
        self.num_updates += 1
        self.tokens_seen += round(num_completions * metrics["rollout/completion_length"])
        metrics |= phases.seconds | {"train/kl_coef": self.kl_coef.value, "train/num_updates": float(self.num_updates)}
        metrics["train/lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        metrics["throughput/samples_per_s"] = num_completions / sum(phases.seconds.values())
        self.kl_coef.adapt(metrics.get("train/kl", 0.0), num_completions)
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.log("train/reward", metrics["train/reward"], prog_bar=True)
        self.log_dict({name: value for name, value in metrics.items() if name != "train/reward"})
        self.log_counters()
        for sign in self.watch.look(metrics):
            self.alert("Sign of a run going wrong", f"Step {self.num_updates}: {sign}")
            self.trainer.should_stop |= self.guards.action == "stop"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what decides the next step beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY] |= {
            **self.kl_coef.state_dict(),
            "num_updates": self.num_updates,
            "watch": self.watch.state_dict(),
            "reference": self._reference[0].fingerprint if self._reference else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the KL coefficient, the guards and the count of updates."""
        super().on_load_checkpoint(checkpoint)
        self.num_updates = (state := checkpoint[STATE_KEY])["num_updates"]
        self.kl_coef.load_state_dict(state)
        self.watch.load_state_dict(state["watch"])
        for reference in self._reference:
            reference.check(state["reference"])

    def _groups(self, experience: Experience, rows: Sequence[int]) -> list[list[int]]:
        """Micro-batches; ranks that gather each other's weights have to make equally many."""
        groups = experience.groups(rows, self.update_settings.micro_batch_tokens)
        if self.sharding is None:
            return groups
        most = self.trainer.strategy.reduce(torch.tensor(len(groups), device=self.device), reduce_op="max")
        return experience.groups(rows, self.update_settings.micro_batch_tokens, at_least=int(most))

    def _accumulate(self, experience: Experience, rows: list[int], divisor: float, averages: Averages) -> Totals:
        """Gradients of a minibatch, over micro-batches, divided by its tokens, or its completions, on all ranks."""
        optimizer: Any = self.optimizers()
        groups = self._groups(experience, rows)
        for number, group in enumerate(groups, 1):
            unfinished = number < len(groups) and hasattr(self.trainer.strategy, "block_backward_sync")
            with self.trainer.strategy.block_backward_sync() if unfinished else nullcontext():  # type: ignore[attr-defined]
                loss, kl = self.loss(experience, group, averages)
                # Strategies average gradients over ranks.
                self.manual_backward(loss * self.trainer.world_size / divisor)
            by_tokens = self.update_settings.average == "tokens"
            counted = experience.mask[group].sum() if by_tokens else loss.new_full((), len(group))
            self.step.collect(loss=loss, kl=kl.double(), tokens=counted.double())
        return self.step.reduce(gradient_norm(optimizer), self.ranks, divided_by=divisor)

    def _optimizer_step(self, totals: Totals, *, is_first: bool) -> None:
        """Clip and step; what is not finite is left out."""
        optimizer: Any = self.optimizers()
        algorithm = self.trainer.gradient_clip_algorithm
        if not self.step.finish(optimizer, totals, self.gradient_clip_val, algorithm):
            self.tell_skipped_step()
        if is_first:
            optimizer.step()
            if self.adapter is not None:
                self.adapter.after_step(self.num_updates + 1)
        else:
            # Lightning counts each step of its own optimizer, and a global step is to be a rollout.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()
