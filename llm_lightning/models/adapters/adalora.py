"""What AdaLoRA (arXiv:2303.10512) needs of a training loop: its penalty in the loss and its ranks after each step."""

import math
from typing import Any

import torch
from torch import Tensor

from llm_lightning.errors import UserError


def is_adalora(model: Any) -> bool:
    """Whether `model` is a `PeftModel` with an AdaLoRA adapter."""
    return getattr(model, "peft_type", None) == "ADALORA"


def orthogonality(model: Any) -> Tensor | float:
    """The penalty on singular vectors that are not orthogonal, as peft adds it to a mean loss; 0 for other networks."""
    if not is_adalora(model) or not torch.is_grad_enabled():
        return 0.0
    distances = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.norm(product - torch.eye(len(product)).to(product)))
    return model.active_peft_config.orth_reg_weight * torch.stack(distances).mean()


def set_total_steps(model: Any, total: float) -> None:
    """Let the ranks fall over the run's own number of optimizer steps, whatever `total_step` said.

    Raises:
        UserError: a run without an end, or one too short for `tinit` and `tfinal`.
    """
    config = model.active_peft_config
    if math.isinf(total):
        raise UserError("model.peft=AdaLoraConfig lowers its ranks over the run's steps: give trainer.max_steps.")
    # The first step measures what matters; peft knows nothing before it.
    if config.tinit + config.tfinal >= total - 1:
        raise UserError(
            f"model.peft.tinit={config.tinit} and tfinal={config.tfinal} leave no step of {total:.0f} for lowering the "
            "ranks: lower them or raise trainer.max_steps."
        )
    if config.init_r <= config.target_r:
        raise UserError(f"model.peft.init_r={config.init_r} must be above model.peft.target_r={config.target_r}.")
    config.total_step = int(total)


def allocate_ranks(model: Any, step: int) -> None:
    """After optimizer step number `step`, while its gradients are there; a step that was left out changes nothing."""
    if any(p.grad is not None for p in model.parameters() if p.requires_grad):
        model.base_model.update_and_allocate(step)


def allocation_state(model: Any) -> dict[str, Any]:
    """What the next allocation depends on, for a checkpoint."""
    allocator = model.base_model.rankallocator
    averages = {"sensitivity": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}
    copies = {kind: dict(values) for kind, values in averages.items()}
    return copies | {"rank_pattern": model.active_peft_config.rank_pattern}


def load_allocation_state(model: Any, state: dict[str, Any]) -> None:
    """Go on where `allocation_state` was taken."""
    allocator = model.base_model.rankallocator
    parameters = dict(model.base_model.model.named_parameters())

    def restored(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(parameters[name].device) for name, value in values.items()}

    allocator.exp_avg_ipt, allocator.exp_avg_unc = restored(state["sensitivity"]), restored(state["uncertainty"])
    allocator.ipt = {name: torch.zeros_like(value) for name, value in allocator.exp_avg_ipt.items()}
    model.active_peft_config.rank_pattern = state["rank_pattern"]
