"""Memory of a step, counted tensor by tensor as its operators run."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.optim import Optimizer

KINDS = {
    "Parameter": "weights", "Buffer": "weights", "Gradient": "gradients", "Optstate": "optimizer",
    "Activation": "activations", "Temp": "activations", "Other": "batch",
}  # fmt: skip
"""torch's names for what a tensor is, and ours."""


class StepMemory(MemTracker):
    """torch's tracker for steps that run a network several times: a policy and then its reference, say.

    Of modules it takes no note: its own tables hold one pass of each.
    """

    def _track(self, reftype: Any, t: Tensor) -> None:
        if isinstance(t.numel(), int):  # else their number depends on numbers: a few of a batch's pairs or texts
            super()._track(reftype, t)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        return

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        return

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        return

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None:
        return

    def know(self, networks: Iterable[nn.Module], optimizer: Optimizer, batch: Iterable[Tensor]) -> None:
        """Name what is there before the step begins, and what will be a gradient."""
        self.track_external(*networks, optimizer, *batch)
        for network in networks:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._name_gradient)

    def _name_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)

    def peak(self, device: torch.device) -> dict[str, int]:
        """Bytes at the worst moment so far, by kind (see `KINDS`)."""
        snapshots: dict[torch.device, dict[Any, int]] = self.get_tracker_snapshot("peak")
        found = dict.fromkeys(dict.fromkeys(KINDS.values()), 0)
        for where, snapshot in snapshots.items():
            if where.type == device.type:
                for kind, size in snapshot.items():
                    if kind != "Total":
                        found[KINDS[kind.value]] += size
        return found
