"""Counters of energy that processors and graphics cards have: RAPL's files, and NVML."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL (Running Average Power Limit), the counters of Intel's and AMD's processors."""


class EnergyCounter(Protocol):
    """Counts the joules of one device.

    Args:
        device: tells it from all others of the run, those of other machines included.
        source: what counts.
    """

    device: str
    source: str

    def joules(self) -> float:
        """Since the counter was made; raises `OSError` where it cannot be read any more."""
        ...


class RaplCounter:
    """A processor's package, or memory outside of it; whatever runs there counts, other programs' work included.

    The counter begins anew after some 50 to 300 kilojoules. It has to be read before it comes around a second time:
    every few minutes.

    Args:
        zone: its folder below `/sys/class/powercap`.

    Raises:
        OSError: it cannot be read; most machines let root alone read it.
    """

    source = "RAPL"

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self.device = f"{socket.gethostname()} {zone.name} {(zone / 'name').read_text().strip()}"
        self._last = int(self._file.read_text())
        self._microjoules = 0

    def joules(self) -> float:
        """Since the counter was made."""
        now = int(self._file.read_text())
        self._microjoules += (now - self._last) % (self._range + 1)
        self._last = now
        return self._microjoules / 1e6


class NvmlCounter:
    """A graphics card of NVIDIA (Volta or newer), by `nvidia-ml-py`; whatever runs there counts.

    Raises:
        OSError: the library is missing, or the card has no counter (a slice of one, MIG, has none).
    """

    source = "NVML"

    def __init__(self, device: torch.device) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise OSError("nvidia-ml-py is not installed (pip install 'llm-lightning[energy]')") from error
        self._nvml = pynvml
        self.device = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.device)
        except pynvml.NVMLError as error:
            raise OSError(f"NVML does not find {self.device}: {error}") from error
        self._first = self._millijoules()

    def joules(self) -> float:
        """Since the counter was made."""
        return (self._millijoules() - self._first) / 1e3

    def _millijoules(self) -> int:
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            raise OSError(f"{self.device} has no counter of energy: {error}") from error


def find_counters(device: torch.device, powercap: Path = POWERCAP) -> tuple[list[EnergyCounter], list[str]]:
    """Those of a rank: the machine's processors, and the rank's graphics card if it has one.

    Args:
        device: that the rank trains on.
        powercap: where the processors' counters lie.

    Returns:
        The counters, and for each kind that cannot be read why.
    """
    found: list[EnergyCounter] = []
    missing = []
    zones = list(_zones(powercap))
    try:
        found += [RaplCounter(zone) for zone in zones]
    except (OSError, ValueError) as error:
        missing.append(f"RAPL ({error})")
    if not zones:
        missing.append(f"RAPL ({powercap} has no counters)")
    if device.type == "cuda":
        try:
            found.append(NvmlCounter(device))
        except OSError as error:
            missing.append(f"NVML ({error})")
    return found, missing


def _zones(powercap: Path) -> Iterator[Path]:
    """Packages, and memory beside them. What is within a package (cores, graphics) and the whole platform (psys) would
    count twice.
    """
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = zone / "name"
        if name.is_file() and name.read_text().strip().startswith(("package", "dram")):
            yield zone
