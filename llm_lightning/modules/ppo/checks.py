"""A user's mistakes in settings of PPO that have to do with each other, found before any weight is read."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from llm_lightning.errors import UserError
from llm_lightning.models.adapters import residual
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules.ppo.settings import Advantages, Rollout, Update
from llm_lightning.modules.ranks import Ranks
from llm_lightning.rewards import RecordCheck, Reward, RewardModel, check_function, with_members
from llm_lightning.rollouts import AsynchronousEngine


def check_advantages(advantages: Advantages, rollout: Rollout, backbone: Backbone) -> None:
    """Raise `UserError` where there is nothing to estimate them from."""
    if advantages.kind != "gae" and rollout.num_samples < 2:
        raise UserError(
            f"model.advantages.kind={advantages.kind} compares completions to one prompt: model.rollout.num_samples="
            f"{rollout.num_samples} must be at least 2."
        )
    if advantages.kind == "gae" and rollout.max_resamples:
        raise UserError(
            f"model.rollout.max_resamples={rollout.max_resamples} draws groups again whose scores are all the same: it "
            "goes with model.advantages.kind=grpo, dr_grpo or rloo. With a critic such completions teach, too."
        )
    if advantages.kind == "gae" and backbone.behaviour().own_logits:
        kind = backbone.read_config().model_type
        raise UserError(
            f"model.advantages.kind=gae has a critic that reads the policy's states, and {kind} networks only give "
            "their logits here: take model.advantages.kind=grpo, dr_grpo or rloo."
        )


def check_trainer(trainer: Trainer, rollout: Rollout) -> None:
    """Raise `UserError` for what would train wrongly."""
    strategy = type(trainer.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy", "FSDP2Strategy"):
        raise UserError(f"PPO runs on one device or with trainer.strategy ddp or fsdp2, not yet with {strategy}.")
    if rollout.staleness and strategy == "FSDP2Strategy":
        raise UserError(
            "model.rollout.staleness=1: ranks that gather each other's weights to write cannot train meanwhile; take "
            "trainer.strategy=ddp, or staleness=0."
        )
    if Ranks.of(trainer).count < trainer.world_size:
        raise UserError("trainer.strategy.tensor_parallel_size: PPO does not sample from tensor-parallel layers.")
    if str(trainer.precision).startswith("16-"):
        raise UserError("trainer.precision=16-mixed: PPO has no loss scaling; take bf16-mixed or 32-true.")


def check_rewards(rewards: Mapping[str, Reward]) -> None:
    """Raise `UserError` where none of them is trained on, or one of them finds a mistake."""
    if not any(reward.weight for reward in rewards.values()):
        raise UserError(
            "model.rewards: there is no reward to train on. Name one, for example {correct: {function: {class_path: "
            "llm_lightning.rewards.FinalAnswer}}}; its weight must not be 0."
        )
    for name, reward in rewards.items():
        is_model = any(isinstance(function, RewardModel) for function in with_members(reward.function))
        if reward.keep_special_tokens and is_model:
            raise UserError(
                f"model.rewards.{name}.keep_special_tokens: a RewardModel writes texts down by its own template, and "
                "would read the policy's tokens as letters: leave it out."
            )
        check_function(reward.function)


def check_adapter(config: Any) -> None:
    """Raise `UserError` for the peft configs (None: no adapter) that do not go with a reference."""
    if config is None:
        return
    name = type(config).__name__
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        raise UserError(f"model.peft={name}: PPO trains the whole network, LoRA and its kin, not virtual tokens.")
    start = str(getattr(config, "init_lora_weights", ""))
    if start.startswith(residual.FROM_WEIGHTS):
        raise UserError(
            f"model.peft.init_lora_weights={start} changes the network, which is PPO's reference: leave it out."
        )


def check_engine(engine: Any, rollout: Rollout) -> None:
    """Raise `UserError` where it cannot write while the policy is trained, and has to."""
    if rollout.staleness and not isinstance(engine, AsynchronousEngine):
        raise UserError(
            f"model.rollout.staleness=1: {type(engine).__name__} has no method `begin`, by which it would take the "
            "weights as they are and write while they are trained; leave staleness out."
        )


def check_data(
    datamodule: LightningDataModule,
    rewards: Mapping[str, Reward],
    rollout: Rollout,
    update: Update,
    backbone: Backbone,
) -> None:
    """Raise `UserError` where the data has no prompts, or not as many as the settings ask for.

    The DataModule is told to look whether the rewards can judge a record.
    """
    data: Any = datamodule
    prompt_tokens = getattr(data, "max_prompt_tokens", None)
    if prompt_tokens is None:
        raise UserError(f"PPO learns from prompts, and {type(data).__name__} has none: --data PromptDataModule.")
    data.record_check = RecordCheck(rewards)
    longest = getattr(backbone.read_config().get_text_config(decoder=True), "max_position_embeddings", None)
    new_tokens = rollout.sampling.max_new_tokens
    if rollout.staleness and not hasattr(data, "next_batch"):
        raise UserError(
            f"model.rollout.staleness=1: {type(data).__name__} does not say which prompts come next; take --data "
            "PromptDataModule, or leave it out."
        )
    if longest and prompt_tokens + new_tokens > longest:
        raise UserError(
            f"data.max_prompt_tokens={prompt_tokens} and model.rollout.sampling.max_new_tokens={new_tokens} are more "
            f"than the network's {longest} positions: lower one of them."
        )
    num_completions = data.batch_size * rollout.num_samples
    if num_completions % update.num_minibatches:
        raise UserError(
            f"model.update.num_minibatches={update.num_minibatches} does not divide the {num_completions} completions "
            f"of a rank (data.batch_size={data.batch_size} times model.rollout.num_samples={rollout.num_samples})."
        )
