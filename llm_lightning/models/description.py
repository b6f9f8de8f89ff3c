"""What trains, in one line a dtype."""

from collections import Counter

from torch import nn

from llm_lightning.models.heads import base_model


def describe(model: nn.Module, precision: str) -> str:
    """A network in words: its parameters, which of them train, in which dtype, and how attention runs.

    Args:
        model: a transformers network, or a `PeftModel` around one.
        precision: the trainer's.
    """
    network = base_model(model)
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained: Counter[str] = Counter()
    for parameter in parameters:
        if parameter.requires_grad:
            trained[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    share = "all" if sum(trained.values()) == total else f"{sum(trained.values()) / total:.2%}"
    dtypes = ", ".join(f"{count / 1e6:,.2f} M in {dtype}" for dtype, count in trained.items())
    return (
        f"{type(network).__name__}: {total / 1e6:,.2f} M parameters, {share} trained ({dtypes}); "
        f"precision {precision}, attention {network.config._attn_implementation}"
    )
