"""A user's mistakes in the settings of preference optimization, and what is far from all that is known to work."""

from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.objectives.preference_optimization import Kind, PreferenceLoss

FAR = 10
"""Beyond the known good values by this factor something is said."""

ADAPTERS = 50
"""Adapters learn at rates up to this many times those of a whole network (LoRA: 2e-4 beside 5e-6)."""

SHARES = 1.0, 4 / 3
"""What KTO's paper wants of the weight of all desirable answers over that of the others (arXiv:2402.01306)."""
FAR_SHARE = 1.5
"""Beyond them by this factor something is said."""

USED_BY: dict[str, tuple[Kind, ...]] = {
    "label_smoothing": ("dpo", "dpo_norm", "robust"),
    "target_margin_ratio": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


def check_objective(objective: PreferenceLoss) -> None:
    """Raise `UserError` for settings outside of their range, or without an effect."""
    default = PreferenceLoss(objective.kind)
    for name, kinds in USED_BY.items():
        if getattr(objective, name) != getattr(default, name) and objective.kind not in kinds:
            raise UserError(
                f"model.objective.{name} has no effect on kind={objective.kind}, only on {', '.join(kinds)}: leave it "
                "out."
            )
    if objective.strength <= 0:
        raise UserError(f"model.objective.beta={objective.beta} must be above 0.")
    if not 0 <= objective.label_smoothing < 0.5:
        raise UserError(
            f"model.objective.label_smoothing={objective.label_smoothing} must be at least 0 and below 0.5."
        )
    for name in ("target_margin_ratio", "desirable_weight", "undesirable_weight"):
        if getattr(objective, name) < 0:
            raise UserError(f"model.objective.{name}={getattr(objective, name)} must be at least 0.")
    if objective.sft < 0:
        raise UserError(f"model.objective.sft_weight={objective.sft_weight} must be at least 0.")


def check_reference(reference: str, objective: PreferenceLoss, datamodule: Any) -> None:
    """Raise `UserError` where there is nothing to keep, or nothing to keep it for."""
    if reference != "cached":
        return
    if not objective.known.needs_reference:
        raise UserError(f"model.reference=cached: kind={objective.kind} has no reference; leave it out.")
    if datamodule is not None and not hasattr(datamodule, "in_order"):
        raise UserError(
            "model.reference=cached keeps what belongs to the rows of a PreferenceDataModule: leave it out."
        )


def unusual_beta(objective: PreferenceLoss) -> str | None:
    """What to say of a beta that is far from the known good ones."""
    low, high = objective.known.betas
    if low / FAR <= objective.strength <= high * FAR:
        return None
    known = f"what {objective.kind} is known to work with: {low:g} to {high:g}."
    return f"model.objective.beta={objective.strength:g} is far from {known}"


def unusual_rate(objective: PreferenceLoss, rate: float, has_adapter: bool) -> str | None:
    """The same of a learning rate."""
    low, high = objective.known.rates
    high = high * ADAPTERS if has_adapter else high
    if low / FAR <= rate <= high * FAR:
        return None
    what = "an adapter" if has_adapter else "a whole network"
    known = f"what {objective.kind} is known to work with on {what}: {low:g} to {high:g}"
    return f"model.optimizer.lr={rate:g} is far from {known} (small networks take more than large ones)."


def unbalanced(objective: PreferenceLoss, num_desirable: int, num_undesirable: int) -> str | None:
    """What to say of labels that KTO can learn little from, as their numbers and weights are."""
    if not num_desirable or not num_undesirable:
        label = "desirable" if num_desirable else "undesirable"
        return (
            f"All {num_desirable + num_undesirable:,} answers of the training data are {label}. KTO learns from both: "
            "without the others nothing tells it what to tell apart."
        )
    ratio = num_undesirable * objective.undesirable_weight / num_desirable
    low, high = (share * ratio for share in SHARES)
    if low / FAR_SHARE <= objective.desirable_weight <= high * FAR_SHARE:
        return None
    return (
        f"{num_desirable:,} answers of the training data are desirable and {num_undesirable:,} are not. With these "
        f"numbers KTO's paper wants model.objective.desirable_weight from {low:.3g} to {high:.3g} "
        f"(undesirable_weight={objective.undesirable_weight:g}), and it is {objective.desirable_weight:g}."
    )
