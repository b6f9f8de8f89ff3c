"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751), which peft lacks: small networks after the projections.

Each hangs as a submodule on the projection whose output it changes, so every weight of the network keeps its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from llm_lightning.errors import UserError

BOTTLENECK = "BOTTLENECK"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

ATTENTION_OUTPUTS = ("o_proj", "out_proj", "attn.c_proj", "self_attn.dense", "self_attention.dense", "attention.dense")
FEEDFORWARD_OUTPUTS = ("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h", "fc_out")


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters, given like a peft config:
    `model.peft: llm_lightning.models.adapters.BottleneckConfig`.

    Args:
        reduction_factor: hidden size over the width of the bottleneck.
        size: the width itself, instead of `reduction_factor`.
        activation: by its name in transformers.
        placement: `houlsby` after attention and after the feed-forward network, `pfeiffer` (arXiv:2005.00247) after
            the latter alone.
        target_modules: ends of the names of the projections, where the architecture's own are not known.
    """

    reduction_factor: float = 16.0
    size: int | None = None
    activation: str = "gelu"
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    target_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK

    def width(self, hidden_size: int) -> int:
        """Of the bottleneck, for a projection with `hidden_size` outputs."""
        return self.size or max(1, round(hidden_size / self.reduction_factor))

    def names(self) -> tuple[str, ...]:
        """Ends of the names of the projections that get an adapter."""
        if self.target_modules:
            return tuple(self.target_modules)
        return FEEDFORWARD_OUTPUTS if self.placement == "pfeiffer" else ATTENTION_OUTPUTS + FEEDFORWARD_OUTPUTS


class Bottleneck(nn.Module):
    """x + up(activation(down(x))), which starts as x itself."""

    def __init__(self, hidden_size: int, width: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, width, dtype=torch.float32)
        self.activation = ACT2FN[activation]
        self.up = nn.Linear(width, hidden_size, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size), in the dtype it comes in."""
        change = self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return x + change.to(x.dtype)


def add_bottlenecks(network: PreTrainedModel, config: BottleneckConfig) -> None:
    """Put adapters on `network`, in place, and freeze everything else.

    Raises:
        UserError: no projection has one of the names, or there is no such activation.
    """
    if config.activation not in ACT2FN:
        raise UserError(f"model.peft.activation={config.activation!r} is none of transformers' {sorted(ACT2FN)}.")
    layers = network.get_decoder().named_modules()
    targets = [module for name, module in layers if _ends_with(name, config.names())]
    if not targets:
        raise UserError(f"model.peft.target_modules={list(config.names())} fit no module of {type(network).__name__}.")
    config.base_model_name_or_path = network.name_or_path or None
    network.requires_grad_(False)
    for module in targets:
        weight: Any = module.weight
        hidden_size = _outputs(module)
        module.bottleneck = Bottleneck(hidden_size, config.width(hidden_size), config.activation).to(weight.device)
        module.register_forward_hook(_through_bottleneck)
    network.bottleneck_config = config  # type: ignore[assignment]


def save_bottleneck(network: Any, folder: Path, gathered: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapters alone, as safetensors beside their config; weights in `gathered` are taken from there."""
    folder.mkdir(parents=True, exist_ok=True)
    gathered = gathered or {}
    weights = {n: gathered.get(n, p).detach().cpu().contiguous() for n, p in _adapter_parameters(network)}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    network.bottleneck_config.save_pretrained(str(folder))


def load_bottleneck(network: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put adapters that were saved in `folder` on `network`, in place; they are frozen and ready for use.

    Raises:
        UserError: they were made for another network.
    """
    folder = Path(folder)
    add_bottlenecks(network, BottleneckConfig(**BottleneckConfig.from_json_file(str(folder / CONFIG))))
    saved, own = load_file(folder / WEIGHTS), dict(_adapter_parameters(network))
    differing = [
        name for name in saved.keys() | own.keys() if getattr(saved.get(name), "shape", 0) != _shape(own, name)
    ]
    if differing:
        raise UserError(f"The adapters in {folder} are for another network: {sorted(differing)[0]} does not fit.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
            parameter.requires_grad_(False)
    return network


def _through_bottleneck(module: Any, args: tuple, output: Tensor) -> Tensor:
    return module.bottleneck(output)


def _adapter_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in network.named_parameters() if ".bottleneck." in name)


def _ends_with(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _outputs(module: Any) -> int:
    """Of a Linear layer, or of GPT-2's Conv1D."""
    return int(getattr(module, "out_features", None) or module.nf)


def _shape(parameters: dict[str, nn.Parameter], name: str) -> Any:
    return parameters[name].shape if name in parameters else None
