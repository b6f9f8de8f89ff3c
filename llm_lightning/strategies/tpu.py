"""TPUs by `torch_tpu`, which makes them a device of torch like any other; Lightning knows `torch_xla` alone.

Tested on the CPU device only: no TPU has run it yet.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from typing_extensions import override


class TorchTPUAccelerator(Accelerator):
    """One process a chip, for strategies that take any device of torch: `fsdp2`, `ddp`."""

    device_type = "tpu"

    @override
    def setup_device(self, device: torch.device) -> None:
        if device.index is not None:
            torch.accelerator.set_device_index(device)

    @override
    def teardown(self) -> None:
        """Do nothing, since nothing is held."""

    @staticmethod
    @override
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """Chips by their numbers."""
        return list(range(int(devices))) if isinstance(devices, (int, str)) else list(devices)

    @classmethod
    @override
    def get_parallel_devices(cls, devices: Sequence[int]) -> list[torch.device]:
        """A device for each number."""
        return [torch.device(cls.device_type, i) for i in devices]

    @classmethod
    @override
    def auto_device_count(cls) -> int:
        """Chips of this host."""
        return torch.accelerator.device_count() if cls.is_available() else 1

    @classmethod
    @override
    def is_available(cls) -> bool:
        """Whether torch has a TPU."""
        current = torch.accelerator.current_accelerator(check_available=True)
        return current is not None and current.type == cls.device_type

    @staticmethod
    @override
    def name() -> str:
        """The name for `trainer.accelerator`."""
        return "torch_tpu"

    @override
    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """`torch_tpu` counts nothing that `torch.accelerator` tells."""
        return {}
