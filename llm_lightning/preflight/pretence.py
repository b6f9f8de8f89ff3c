"""A module as it will train, whose network has shapes and no numbers: nothing is read, and no memory is taken."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm_lightning.models.backbone import Backbone
from llm_lightning.modules.base import LanguageModule


def fake_mode() -> Any:
    """Tensors without numbers. Where documents lie is known all the same, since those tensors stay real."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def pretended(module: LanguageModule, fill: Callable[[nn.Module], None] | None = None) -> Any:
    """A copy of a module that builds its networks without weights; `networks` are all of them, a reference's too.

    It builds them as sharded networks are built, empty and with the adapter put on first, so that all that would read
    weights is left out.

    Args:
        module: before its network is built; it stays as it is.
        fill: is given each network once it is built; None: they stay on the meta device.
    """
    kind: Any = type(module)

    class Pretending(kind):
        sharding = True  # only that there is some matters to it

        def build_network(self, backbone: Backbone) -> Any:
            return backbone.build(self.tokenizer, self.task, empty=True)

        def shard_and_load(
            self, backbone: Backbone, network: nn.Module, names: Mapping[str, str] | None = None
        ) -> None:
            if fill is not None:
                fill(network)
            self.networks += (network,)

    copied: Any = copy.deepcopy(module)
    copied.__class__ = Pretending
    copied.networks = ()  # no list of modules, which would make them its own
    return copied


def take_shape(network: nn.Module, device: torch.device) -> None:
    """Give a network tensors that pretend to be on a device, for those it has; shared ones stay shared."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for module in network.modules():
        own = [*module.named_parameters("", False, False), *module.named_buffers("", False, False)]
        for name, tensor in own:
            if id(tensor) not in known:
                shape: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                if isinstance(tensor, nn.Parameter):
                    shape = nn.Parameter(shape, requires_grad=tensor.requires_grad)
                known[id(tensor)] = tensor, shape
            setattr(module, name, known[id(tensor)][1])
