"""The load-balancing loss of a mixture of experts (Switch Transformer, arXiv:2101.03961, equations 4 to 6).

It is on where the network's config says `output_router_logits: true`, as in transformers, with the config's coefficient
and by the architecture's own function. It multiplies two means over tokens, so that it is no sum over them: each
micro-batch has its own, weighted by its trained tokens.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from llm_lightning.errors import UserError

TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
COEFFICIENT = "router_aux_loss_coef"
FUNCTION = "load_balancing_loss_func"


class Routing:
    """Where the tokens of one forward pass went.

    Args:
        network: the mixture.
    """

    def __init__(self, network: Any) -> None:
        self.config = network.config.get_text_config(decoder=True)
        self.balance = getattr(sys.modules[type(network).__module__], FUNCTION)
        self.top_k = getattr(network, TOP_K[0], None) or next(
            k for name in TOP_K if (k := getattr(self.config, name, 0))
        )
        self.logits: list[tuple[Tensor, ...]] = []
        self.real: list[Tensor] = []

    @classmethod
    def of(cls, network: Any) -> "Routing | None":
        """None where nothing is to be balanced: other networks, and validation."""
        return cls(network) if torch.is_grad_enabled() and is_balanced(network.config) else None

    def note(self, logits: tuple[Tensor, ...], real: Tensor | None) -> None:
        """Add a forward pass.

        Args:
            logits: of each layer's router, (n, experts).
            real: (n,) or (B, T), which of the tokens are text; None: all.
        """
        self.logits.append(tuple(layer.flatten(0, -2) for layer in logits))
        ones = torch.ones(len(self.logits[-1][0]), dtype=torch.int64, device=logits[0].device)
        self.real.append(ones if real is None else real.flatten().long())

    def loss(self) -> Tensor:
        """() the loss, times its coefficient."""
        layers = tuple(torch.cat(parts) for parts in zip(*self.logits, strict=True))
        real = torch.cat(self.real)[None]
        value = self.balance(layers, layers[0].shape[-1], self.top_k, real)
        return getattr(self.config, COEFFICIENT) * value


def is_balanced(config: Any) -> bool:
    """Whether a config asks for the loss."""
    return bool(getattr(config.get_text_config(decoder=True), "output_router_logits", False))


def check_balance(network: Any) -> None:
    """Raise `UserError` where the loss is asked for and transformers has none for the architecture."""
    config = network.config.get_text_config(decoder=True)
    if not is_balanced(config):
        return
    if hasattr(sys.modules[type(network).__module__], FUNCTION) and getattr(config, COEFFICIENT, None) is not None:
        return
    raise UserError(
        f"output_router_logits=true asks for a load-balancing loss, which transformers does not have for "
        f"{config.model_type}: set it to false in the network's config.json or in model.backbone.config."
    )
