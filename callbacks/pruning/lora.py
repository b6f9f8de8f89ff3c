"""LoRA on a pruned base: what the adapter adds is masked too, so that the network trains as it will be merged.

An ordinary LoRA would fill the base's zeros on merging. Here the product B A is masked in each step, which costs about
what training the full matrices costs, without their optimizer state.
"""

from typing import Any

import torch.nn.functional as F
from peft import PeftType
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from callbacks.errors import CallbackError
from callbacks.pruning.weights import Weight


class MaskedLora(Linear):
    """A `peft` LoRA whose change of the weight is zero wherever the base is pruned."""

    kept: Tensor  # no buffer: DDP would broadcast it in each step

    def _apply(self, fn: Any, recurse: bool = True) -> "MaskedLora":
        super()._apply(fn, recurse)
        base: Any = self.base_layer
        self.kept = self.kept.to(base.weight.device)
        return self

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the weight (out, in); merging calls it too."""
        return super().get_delta_weight(adapter) * self.kept

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base and the masked change; x is (..., in)."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        deltas = {name: self.get_delta_weight(name) for name in names}
        plain = all(isinstance(self.lora_dropout[name], nn.Identity) for name in names)
        if plain and all(delta.dtype == base.weight.dtype for delta in deltas.values()):
            return F.linear(x, sum(deltas.values(), base.weight), base.bias)
        result = base(x)
        for name, delta in deltas.items():
            change = F.linear(self.lora_dropout[name](x).to(delta.dtype), delta)
            result = result + change.to(result.dtype)
        return result


def check_adapter(model: Any, weights: list[Weight]) -> None:
    """Raise `CallbackError` for adapters that a pruned base cannot have: whatever is not plain LoRA."""
    for config in model.peft_config.values():
        if config.peft_type != PeftType.LORA or config.use_dora:
            name = "DoRA" if config.peft_type == PeftType.LORA else config.peft_type.value
            raise CallbackError(
                f"Pruning: of adapters only LoRA without use_dora can be merged into a pruned network; this is {name}."
            )
    for weight in weights:
        wrapped = hasattr(weight.layer, "base_layer")
        if wrapped and (type(weight.layer) not in (Linear, MaskedLora) or weight.group is not None):
            raise CallbackError(
                f"Pruning: the adapter on {weight.name} ({type(weight.layer).__name__}) cannot be masked: take plain "
                "LoRA on unquantized, unsharded linear layers."
            )


def mask_adapters(weights: list[Weight], kept: dict[str, Tensor]) -> None:
    """Let the adapters on pruned weights leave the zeros alone."""
    for weight in weights:
        layer: Any = weight.layer
        if weight.name in kept and hasattr(layer, "base_layer"):
            layer.__class__ = MaskedLora
            layer.kept = kept[weight.name].to(weight.local.device)
