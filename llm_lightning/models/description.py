"""What trains, in a line, and of an adapter what it is on."""

import math
from collections import Counter, defaultdict

from torch import nn

from llm_lightning.models.attention import attention_of
from llm_lightning.models.heads import base_model

AROUND = {"base_layer", "original_module", "adaption_prompt", "bottleneck"}
"""What a layer holds once an adapter is on it."""


def describe(model: nn.Module, precision: str) -> str:
    """A network in words: its parameters, which of them train, in which dtype, and how attention runs.

    Args:
        model: a transformers network, or a `PeftModel` around one.
        precision: the trainer's.
    """
    network = base_model(model)
    total = sum(_size(p) for p in model.parameters())
    trained: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.requires_grad:
            trained[_dtype(parameter)] += parameter.numel()
    share = "all" if sum(trained.values()) == total else f"{sum(trained.values()) / total:.2%}"
    dtypes = ", ".join(f"{_millions(count)} in {dtype}" for dtype, count in trained.items())
    line = (
        f"{type(network).__name__.removeprefix('FSDP')}: {_millions(total)} parameters, {share} trained ({dtypes}); "
        f"precision {precision}, attention {attention_of(network)}"
    )
    return "\n".join([line, *(f"  {kind}" for kind in trained_kinds(model))]) if share != "all" else line


def trained_kinds(model: nn.Module) -> list[str]:
    """What trains of a partly frozen network, by the kind of layer it is on: `q_proj x 30: 0.46 M float32`."""
    modules = dict(model.named_modules())
    layers: dict[tuple[str, str], set[str]] = defaultdict(set)
    sizes: Counter[tuple[str, str]] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = _layer(name, modules)
            key = layer.rsplit(".", 1)[-1], _dtype(parameter)
            layers[key].add(layer)
            sizes[key] += parameter.numel()
    return [f"{kind} x {len(layers[kind, dtype])}: {_millions(n)} {dtype}" for (kind, dtype), n in sizes.items()]


def _layer(name: str, modules: dict[str, nn.Module]) -> str:
    """The network's layer that a parameter belongs to, or what stands beside the network, such as a prompt encoder."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:end])
        if path in modules and not AROUND.isdisjoint(_names_in(modules[path])):
            return path
    return parts[0] if parts[0] == "prompt_encoder" else name.rsplit(".", 1)[0]


def _names_in(module: nn.Module) -> list[str]:
    """Of its own parameters and children."""
    return [name for name, _ in (*module.named_parameters(recurse=False), *module.named_children())]


def _size(parameter: nn.Parameter) -> int:
    """Numbers in a parameter; bitsandbytes packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()


def _dtype(parameter: nn.Parameter) -> str:
    return str(parameter.dtype).removeprefix("torch.")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count >= 1e4 else f"{count:,}"
