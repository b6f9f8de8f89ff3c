"""Proximal policy optimization (arXiv:1707.06347, arXiv:2203.02155), and GRPO and RLOO by another advantage.

One training step is one rollout and all the updates that it is used for: `rollout`, `judge`, `evaluate`,
`estimate_advantages`, `update`.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.answers import Critic, read_answers
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.generation import end_tokens
from llm_lightning.models.heads import base_model
from llm_lightning.modules.base import STATE_KEY, LanguageModule
from llm_lightning.modules.decay import decay_groups
from llm_lightning.modules.gradients import scale, total_norm
from llm_lightning.modules.ppo.advantages import estimate_advantages
from llm_lightning.modules.ppo.checks import check_ppo, check_strategy
from llm_lightning.modules.ppo.critic import build_critic
from llm_lightning.modules.ppo.experience import Experience, minibatches
from llm_lightning.modules.ppo.guards import Guards, Watch
from llm_lightning.modules.ppo.judging import judge
from llm_lightning.modules.ppo.metrics import Averages, Phases, measure
from llm_lightning.modules.ppo.settings import Advantages, CriticSettings, KLPenalty
from llm_lightning.modules.reference import Reference, frozen_copy, switch_off_dropout
from llm_lightning.objectives import policy
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import Completion, Key, RolloutEngine, Sampler, Sampling

HELD_OUT = 2**32
"""Begins the keys of random numbers for answers that are not trained on."""


class PPO(LanguageModule):
    """Aligns a policy with rewards, in full or by an adapter (`peft`).

    `trainer.max_steps`, schedules and checkpoints count rollouts with all of their updates as one step.

    Args:
        backbone: the policy.
        rewards: what makes an answer good, by names of your own.
        optimizer: any torch optimizer by `class_path`; by default AdamW without decay, with the epsilon of PPO.
        sampling: how answers are drawn.
        num_samples: answers to each prompt.
        advantages: `gae`: by a critic (PPO); `grpo`, `rloo`: over the other answers to the prompt, without one.
        critic: the critic of `gae`.
        kl: cost of leaving the reference.
        gamma: discount of a token; 1, as answers are short and rewarded at their end.
        lam: lambda of generalized advantage estimation.
        epochs: times that each answer is learned from.
        num_minibatches: optimizer steps of an epoch.
        clip_range: how far the probability of a token moves in one step's updates.
        max_update_kl: nats of a token between the policy that wrote and the one that is updated; beyond, the rest of
            the step's updates is left out. None: never.
        entropy_coef: bonus for a nat of entropy.
        missing_eos_penalty: what an answer that was cut off for its length loses.
        scale_rewards: divide scores by their standard deviation over the run so far.
        micro_batch_tokens: tokens of one forward and backward pass: bounds memory, changes nothing else.
        num_slots: answers that are written at the same time.
        guards: signs of a run going wrong.
        seed: of the answers' random numbers.
        kwargs: see `LanguageModule`.
    """

    batch_kind, monitor = "prompts", ("val/reward", "max")

    def __init__(
        self,
        backbone: Backbone,
        rewards: dict[str, Reward],
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(
            params, lr=3e-6, eps=1e-5, weight_decay=0.0, fused=True
        ),
        sampling: Sampling = Sampling(),  # noqa: B008 (read only)
        num_samples: int = 1,
        advantages: Advantages = "gae",
        critic: CriticSettings = CriticSettings(),  # noqa: B008
        kl: KLPenalty = KLPenalty(),  # noqa: B008
        gamma: float = 1.0,
        lam: float = 0.95,
        epochs: int = 4,
        num_minibatches: int = 1,
        clip_range: float = 0.2,
        max_update_kl: float | None = None,
        entropy_coef: float = 0.0,
        missing_eos_penalty: float = 0.0,
        scale_rewards: bool = False,
        micro_batch_tokens: int = 8192,
        num_slots: int = 64,
        guards: Guards = Guards(),  # noqa: B008
        seed: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, optimizer, **kwargs)
        self.automatic_optimization = False
        self.gradient_clip_val: float | None = 1.0
        self.rewards = rewards
        self.sampling, self.num_samples, self.num_slots, self.seed = sampling, num_samples, num_slots, seed
        self.advantages, self.critic_settings, self.kl = advantages, critic, kl
        self.gamma, self.lam = gamma, lam
        self.epochs, self.num_minibatches, self.micro_batch_tokens = epochs, num_minibatches, micro_batch_tokens
        self.clip_range, self.max_update_kl = clip_range, max_update_kl
        self.entropy_coef, self.missing_eos_penalty = entropy_coef, missing_eos_penalty
        self.scale_rewards = scale_rewards
        # What the policy thinks of its answers is then known from the update's only pass, before it changes anything.
        self.updates_once = epochs * num_minibatches == 1 and advantages != "gae" and not kl.in_reward
        self.guards, self.watch = guards, Watch(guards)
        self.kl_coef, self.num_updates = kl.coef, 0
        self.critic: Critic | None = None
        self.engine: RolloutEngine | None = None
        self.samples: list[dict[str, Any]] = []
        self._reference: list[Reference] = []  # a list: no submodule, which would be in the checkpoint
        self._validation: Averages | None = None
        self.score_moments: Tensor
        self.register_buffer("score_moments", torch.zeros(3, dtype=torch.float64))

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        check_ppo(self, datamodule)

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
                self.fill(self.backbone, frozen)
            self._reference = [Reference(self.model, frozen)]
        if self.advantages == "gae":
            self.critic = build_critic(self)
        switch_off_dropout(self)
        if self.engine is None:
            ends = end_tokens(base_model(self.model).generation_config)
            self.engine = Sampler(self.sampling, ends, self.num_slots)

    def to(self, *args: Any, **kwargs: Any) -> "PPO":
        """Move or cast; under `bf16-true` what adds up small steps keeps its precision."""
        super().to(*args, **kwargs)
        self.score_moments = self.score_moments.double()
        if self.critic is not None:
            self.critic.head.float()
        return self

    def configure_optimizers(self) -> Any:
        """One optimizer for policy and critic, and the schedule counted in rollouts."""
        groups = decay_groups(self.model)
        if self.critic is not None:
            if self.critic.network is not None:
                groups += decay_groups(self.critic.network)
            head = list(self.critic.head.parameters())
            groups.append({"params": head, "lr": self.critic_settings.head_lr, "weight_decay": 0.0})
        optimizer = self.optimizer(groups)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Refuse what would train wrongly, and say what trains."""
        check_strategy(self)
        super().on_fit_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One rollout and its updates."""
        averages, phases = Averages(self.device), Phases(self.device)
        with phases("rollout"):
            first = self.trainer.global_rank * len(batch["prompts"])
            places = range(first, first + len(batch["prompts"]))
            prompts, completions = self.rollout(batch, [(self.seed, self.num_updates, place) for place in places])
        with phases("reward"):
            experience = self.judge(batch, prompts, completions, averages)
        with phases("evaluate"):
            self.evaluate(experience)
        with phases("advantage"):
            discounts = self.gamma, self.lam
            metrics = estimate_advantages(
                experience, self.advantages, self.kl, self.kl_coef, discounts, self.num_samples, self.sum_over_ranks
            )
        with phases("update"):
            metrics |= self.update(experience, averages)
        measure(experience, averages, self.num_samples, has_reference=bool(self._reference))
        self.finish(metrics | averages.means(self.sum_over_ranks), phases, self.trainer.world_size * len(prompts))

    def rollout(self, batch: dict[str, Any], keys: list[Key]) -> tuple[list[Tensor], list[Completion]]:
        """The policy's answers, and for each its prompt.

        Args:
            batch: from a `PromptDataModule`.
            keys: of each prompt, from which those of its answers are made.
        """
        assert self.engine is not None
        ids, mask = batch["prompt_ids"].cpu(), batch["attention_mask"].cpu().bool()
        prompts = [row[real] for row, real in zip(ids, mask, strict=True)]
        samples = range(self.num_samples)
        completions = self.engine(self.model, prompts, [[(*key, sample) for sample in samples] for key in keys])
        return [prompt for prompt in prompts for _ in samples], completions

    def judge(
        self, batch: dict[str, Any], prompts: list[Tensor], completions: list[Completion], averages: Averages
    ) -> Experience:
        """The answers with their scores: the weighted sum of the rewards, less the penalty for no end."""
        judged = judge(self.rewards, batch, completions, self.tokenizer)
        judged.add_to(averages, "reward", "train/reward")
        self.samples = judged.rows()
        experience = Experience(prompts, completions, judged.total.to(self.device))
        experience.scores -= self.missing_eos_penalty * ~experience.is_finished
        if self.scale_rewards:
            self.score_moments += self.sum_over_ranks(policy.moments(experience.scores))
            experience.scores /= policy.mean_and_std(self.score_moments)[1].float() + policy.EPS
        if self.critic is not None and self.num_updates == 0:
            self.critic.expect(float(policy.mean_and_std(self.sum_over_ranks(policy.moments(experience.scores)))[0]))
        return experience

    @torch.no_grad()
    def evaluate(self, experience: Experience) -> None:
        """Put in what policy, reference and critic make of each token, in passes like those of the update."""
        for rows in self._groups(experience, range(len(experience.prompts))):
            packed = experience.packed(rows)
            if not self.updates_once:
                states, own = read_answers(self.model, packed, self.sampling.temperature)
                experience.put(rows, logprobs=own.logprobs, entropies=own.entropies)
                if self.critic is not None:
                    experience.put(rows, values=self.critic(packed, states))
            for reference in self._reference:
                with reference.policy() as other:
                    _, ref = read_answers(other, packed, self.sampling.temperature, with_entropies=False)
                experience.put(rows, ref_logprobs=ref.logprobs)
        # Autocast keeps the weights that it casts, and these have no gradient.
        torch.clear_autocast_cache()

    def update(self, experience: Experience, averages: Averages) -> dict[str, float]:
        """Learn from the experience, epoch by epoch."""
        generator = np.random.default_rng((self.seed, self.num_updates))
        count, rank, num_ranks = len(experience.prompts), self.trainer.global_rank, self.trainer.world_size
        plan = [
            rows
            for _ in range(self.epochs)
            for rows in minibatches(count, self.num_minibatches, rank, num_ranks, generator)
        ]
        counts = torch.stack([experience.mask[rows].sum() for rows in plan]).double()
        norms: list[float] = []
        for rows, num_tokens in zip(plan, self.sum_over_ranks(counts).tolist(), strict=True):
            update_kl = self.sum_over_ranks(self._accumulate(experience, rows, num_tokens, averages)) / num_tokens
            if norms and self.max_update_kl is not None and float(update_kl) > self.max_update_kl:
                self.optimizers(use_pl_optimizer=False).zero_grad(set_to_none=True)  # type: ignore[union-attr]
                break
            norms.append(self._optimizer_step(is_first=not norms))
        return {"train/grad_norm": norms[0], "train/num_optimizer_steps": float(len(norms))}

    def loss(self, experience: Experience, rows: Sequence[int], averages: Averages) -> tuple[Tensor, Tensor]:
        """Of these rows, the loss summed over tokens, and without gradient the KL from the policy that wrote them."""
        packed = experience.packed(rows)
        temperature, with_entropies = self.sampling.temperature, self.entropy_coef > 0 or self.updates_once
        states, now = read_answers(self.model, packed, temperature, with_entropies=with_entropies)
        if self.updates_once:
            experience.put(rows, logprobs=now.logprobs.detach(), entropies=now.entropies.detach())
        old, ref, advantages, old_values, returns = experience.take(
            rows, "logprobs", "ref_logprobs", "advantages", "values", "returns"
        )
        actor = policy.policy_loss(now.logprobs, old, advantages, self.clip_range)
        averages.add("train/policy_loss", actor.loss)
        averages.add("train/clip_share", actor.is_clipped)
        averages.add("train/update_kl", actor.kl)
        loss = actor.loss
        if self.entropy_coef:
            loss = loss - self.entropy_coef * now.entropies
        if self.kl.in_loss:
            loss = loss + self.kl_coef * policy.kl_estimate(now.logprobs, ref, self.kl.estimator)
        if self.critic is not None:
            errors = policy.value_loss(
                self.critic(packed, states), old_values, returns, self.critic_settings.clip_range
            )
            averages.add("train/value_loss", errors)
            loss = loss + self.critic_settings.coef * errors
        averages.add("train/loss", loss)
        return loss.sum(), actor.kl.sum()

    def finish(self, metrics: dict[str, float], phases: Phases, num_answers: int) -> None:
        """Count, adapt the KL coefficient, log and watch."""
        self.num_updates += 1
        self.tokens_seen += round(num_answers * metrics["rollout/completion_length"])
        metrics |= phases.seconds | {"train/kl_coef": self.kl_coef, "train/num_updates": float(self.num_updates)}
        metrics["train/lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        metrics["throughput/samples_per_s"] = num_answers / sum(phases.seconds.values())
        if self.kl.target is not None:
            kl = metrics["train/kl"]
            self.kl_coef = policy.adapted_kl_coef(self.kl_coef, kl, self.kl.target, num_answers, self.kl.horizon)
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.log("train/reward", metrics["train/reward"], prog_bar=True)
        self.log_dict({name: value for name, value in metrics.items() if name != "train/reward"})
        self.log_counters()
        for sign in self.watch.look(metrics):
            self.alert("Sign of a run going wrong", f"Step {self.num_updates}: {sign}")
            self.trainer.should_stop |= self.guards.action == "stop"

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reward the answers to held-out prompts, whose random numbers are the same at each validation."""
        if self._validation is None:
            self._validation = Averages(self.device)
        _, completions = self.rollout(batch, [(HELD_OUT, self.seed, number) for number in batch["numbers"]])
        judge(self.rewards, batch, completions, self.tokenizer).add_to(self._validation, "val/reward", "val/reward")
        lengths = torch.tensor([len(completion.tokens) for completion in completions])
        self._validation.add("val/completion_length", lengths)

    def on_validation_epoch_end(self) -> None:
        """Log the mean rewards over all held-out prompts."""
        averages, self._validation = self._validation, None
        if averages is not None:
            self.log_dict(averages.means(self.sum_over_ranks))
            self.log("tokens", torch.tensor(self.tokens_seen, dtype=torch.float64))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Answer held-out prompts, with the rewards of each answer."""
        _, completions = self.rollout(batch, [(HELD_OUT, self.seed, number) for number in batch["numbers"]])
        return judge(self.rewards, batch, completions, self.tokenizer).rows()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what decides the next step beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY] |= {
            "num_updates": self.num_updates,
            "kl_coef": self.kl_coef,
            "kl_began": self.kl.coef,
            "watch": self.watch.state_dict(),
            "reference": self._reference[0].fingerprint if self._reference else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        super().on_load_checkpoint(checkpoint)
        self.num_updates = (state := checkpoint[STATE_KEY])["num_updates"]
        if state.get("kl_began", self.kl.coef) == self.kl.coef:  # else the new one takes effect
            self.kl_coef = state["kl_coef"]
        self.watch.load_state_dict(state["watch"])
        for reference in self._reference:
            reference.check(state["reference"])

    def _groups(self, experience: Experience, rows: Sequence[int]) -> list[list[int]]:
        """Micro-batches; ranks that gather each other's weights have to make equally many."""
        groups = experience.groups(rows, self.micro_batch_tokens)
        if self.sharding is None:
            return groups
        count = torch.tensor(len(groups), device=self.device)
        most = int(self.trainer.strategy.reduce(count, reduce_op="max"))
        return experience.groups(rows, self.micro_batch_tokens, at_least=most)

    def _accumulate(self, experience: Experience, rows: list[int], num_tokens: float, averages: Averages) -> Tensor:
        """Gradients of a minibatch, over micro-batches; returns the summed KL from the policy that wrote it."""
        groups = self._groups(experience, rows)
        update_kl = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, group in enumerate(groups, 1):
            unfinished = number < len(groups) and hasattr(self.trainer.strategy, "block_backward_sync")
            with self.trainer.strategy.block_backward_sync() if unfinished else nullcontext():  # type: ignore[attr-defined]
                loss, kl = self.loss(experience, group, averages)
                # Strategies average gradients over ranks.
                self.manual_backward(loss * self.trainer.world_size / num_tokens)
            update_kl += kl
        return update_kl

    def _optimizer_step(self, *, is_first: bool) -> float:
        """Clip and step; returns the gradient's norm. What is not finite is left out."""
        optimizer: Any = self.optimizers()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(total_norm(gradients))
        if self.gradient_clip_val:
            scale(gradients, min(1.0, self.gradient_clip_val / (norm + 1e-6)))
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
            self._note_skipped_step()
        else:
            self._skipped_in_a_row = 0
        if is_first:
            optimizer.step()
            if self.adapter is not None:
                self.adapter.after_step(self.num_updates + 1)
        else:
            # Lightning counts each step of its own optimizer, and a global step is to be a rollout.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()
        return norm
