"""A user's mistakes in the settings of PPO, found before any weight is read."""

from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.models.adapters import residual
from llm_lightning.rewards import RecordCheck, RewardModel


def check_ppo(module: Any, datamodule: Any) -> None:
    """Raise `UserError`.

    Args:
        module: a `PPO`.
        datamodule: what it is to learn from; None where that is not known.
    """
    module.sampling.check("model.sampling")
    module.kl.check()
    module.critic_settings.check()
    module.guards.check({name: reward.weight for name, reward in module.rewards.items()})
    _check_numbers(module)
    _check_rewards(module)
    _check_adapter(module.peft)
    if module.sampling.temperature == 0:
        raise UserError("model.sampling.temperature=0 always writes the same answer: PPO needs a value above 0.")
    if module.advantages != "gae" and module.num_samples < 2:
        raise UserError(
            f"model.advantages={module.advantages} compares answers to one prompt: model.num_samples="
            f"{module.num_samples} must be at least 2."
        )
    if module.advantages == "gae" and module.backbone.behaviour().own_logits:
        kind = module.backbone.read_config().model_type
        raise UserError(
            f"model.advantages=gae has a critic that reads the policy's states, and {kind} networks only give their "
            "logits here: take model.advantages=grpo or rloo."
        )
    if datamodule is not None:
        _check_data(module, datamodule)


def check_strategy(module: Any) -> None:
    """Raise `UserError` for what would train wrongly, once the trainer is there."""
    strategy = type(module.trainer.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy", "FSDP2Strategy"):
        raise UserError(f"PPO runs on one device or with trainer.strategy ddp or fsdp2, not yet with {strategy}.")
    if module.num_ranks < module.trainer.world_size:
        raise UserError("trainer.strategy.tensor_parallel_size: PPO does not write answers with parts of a layer.")
    if str(module.trainer.precision).startswith("16-"):
        raise UserError("trainer.precision=16-mixed: PPO has no loss scaling; take bf16-mixed or 32-true.")


def _check_numbers(module: Any) -> None:
    for name, least in (
        ("num_samples", 1), ("epochs", 1), ("num_minibatches", 1), ("micro_batch_tokens", 1), ("num_slots", 1),
        ("gamma", 0), ("lam", 0), ("entropy_coef", 0), ("missing_eos_penalty", 0),
    ):  # fmt: skip
        if getattr(module, name) < least:
            raise UserError(f"model.{name}={getattr(module, name)} must be at least {least}.")
    for name in ("gamma", "lam"):
        if getattr(module, name) > 1:
            raise UserError(f"model.{name}={getattr(module, name)} must be at most 1.")
    if not 0 < module.clip_range < 1:
        raise UserError(f"model.clip_range={module.clip_range} must lie between 0 and 1.")
    if module.max_update_kl is not None and module.max_update_kl <= 0:
        raise UserError(f"model.max_update_kl={module.max_update_kl} must be above 0.")


def _check_rewards(module: Any) -> None:
    if not any(reward.weight for reward in module.rewards.values()):
        raise UserError(
            "model.rewards: there is no reward to learn from. Name one, for example {correct: {function: {class_path: "
            "llm_lightning.rewards.FinalAnswer}}}; its weight must not be 0."
        )
    for name, reward in module.rewards.items():
        if reward.keep_special_tokens and isinstance(reward.function, RewardModel):
            raise UserError(
                f"model.rewards.{name}.keep_special_tokens: a RewardModel writes texts down by its own template, and "
                "would read the policy's tokens as letters: leave it out."
            )
        if callable(check := getattr(reward.function, "check", None)):
            check()


def _check_adapter(config: Any) -> None:
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


def _check_data(module: Any, datamodule: Any) -> None:
    prompt_tokens = getattr(datamodule, "max_prompt_tokens", None)
    if prompt_tokens is None:
        raise UserError(f"PPO learns from prompts, and {type(datamodule).__name__} has none: --data PromptDataModule.")
    datamodule.record_check = RecordCheck(module.rewards)
    longest = getattr(module.backbone.read_config().get_text_config(decoder=True), "max_position_embeddings", None)
    new_tokens = module.sampling.max_new_tokens
    if longest and prompt_tokens + new_tokens > longest:
        raise UserError(
            f"data.max_prompt_tokens={prompt_tokens} and model.sampling.max_new_tokens={new_tokens} are more than the "
            f"network's {longest} positions: lower one of them."
        )
    num_answers = datamodule.batch_size * module.num_samples
    if num_answers % module.num_minibatches:
        raise UserError(
            f"model.num_minibatches={module.num_minibatches} does not divide the {num_answers} answers of a rank "
            f"(data.batch_size={datamodule.batch_size} times model.num_samples={module.num_samples})."
        )
