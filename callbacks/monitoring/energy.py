"""What a run costs in energy and in money."""

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed as dist
from typing_extensions import override

from callbacks.contract import CountsTokens, offered
from callbacks.errors import CallbackError
from callbacks.monitoring.energy_counters import POWERCAP, EnergyCounter, find_counters
from callbacks.phase import is_rehearsal
from callbacks.training_loop import is_accumulating, logs_now
from llm_lightning_safety.files import read_text, write_text

NAME = "energy.json"
JOULES_PER_KWH = 3.6e6
SECONDS_BETWEEN_READINGS = 20.0
"""A processor's counter begins anew after some minutes at most power; to read it takes tens of microseconds."""


class Energy(Callback):
    """Measures the energy of training, validation included, and logs it where the trainer logs: `energy/joules`,
    `energy/joules_per_token` and `energy/kwh`.

    Counted are the processors of each machine (RAPL) and the graphics card of each rank (NVML), each device once
    however many ranks share it, with whatever else runs on them. Fans, disks and power supplies have no counter.
    `energy.json` in the run folder tells the sum over all starts of the run and where it comes from. Where there is no
    counter the energy is "not measured"; with `assumed_watts` it is estimated, and called an estimate.

    Args:
        assumed_watts: Power of all the run's machines together, where nothing can be measured.
        price_per_kwh: Of energy.
        price_per_hour: Of all the run's machines together, instead.
        currency: Of the price.
        powercap: Where the processors' counters lie; a container may see its host's in another place.

    Raises:
        CallbackError: A number is not above 0, or both prices are given.
    """

    def __init__(
        self,
        assumed_watts: float | None = None,
        price_per_kwh: float | None = None,
        price_per_hour: float | None = None,
        currency: str = "",
        powercap: str | Path = POWERCAP,
    ) -> None:
        numbers = {"assumed_watts": assumed_watts, "price_per_kwh": price_per_kwh, "price_per_hour": price_per_hour}
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise CallbackError(f"Energy.{name}: {value} is not a number above 0.")
        if price_per_kwh is not None and price_per_hour is not None:
            raise CallbackError("Energy.price_per_kwh and price_per_hour exclude each other: give one.")
        self.assumed_watts = assumed_watts
        self.price_per_kwh = price_per_kwh
        self.price_per_hour = price_per_hour
        self.currency = currency
        self.powercap = Path(powercap)
        self._counters: list[EnergyCounter] = []
        self._readings: dict[str, tuple[str, float]] = {}
        self._earlier: dict[str, Any] = {}
        self._missing: list[str] = []
        self._started = self._read_at = 0.0
        self.report: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._earlier = _read(Path(trainer.default_root_dir) / NAME) if trainer.is_global_zero else {}
        found, self._missing = find_counters(trainer.strategy.root_device, self.powercap)
        ranks = _gathered([each.device for each in found])
        taken = {device for rank in ranks[: trainer.global_rank] for device in rank}
        self._counters = [each for each in found if each.device not in taken]
        self._readings = {}
        self._started = self._read_at = time.monotonic()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._keep_reading()
        if is_accumulating(trainer) or not logs_now(trainer):
            return
        self._sum_up(trainer, pl_module)
        for name in ("joules", "joules_per_token", "kwh"):
            if self.report.get(name) is not None:
                value = torch.tensor(self.report[name], dtype=torch.float64)  # float32 counts to 17 million only
                pl_module.log(f"energy/{name}", value, rank_zero_only=True)

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._started:
            self._keep_reading()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sum_up(trainer, pl_module)

    def text(self) -> str:
        """The sum in a line; "" before there is one."""
        if not self.report:
            return ""
        parts = [f"not measured: no {', no '.join(self.report['missing'])}"]
        if self.report["joules"] is not None:
            parts = [f"{self.report['joules']:,.0f} J ({self.report['kwh']:.4g} kWh), {self.report['source']}"]
        if self.report["joules_per_token"] is not None:
            parts.append(f"{self.report['joules_per_token']:.3g} J a token")
        if self.report["cost"] is not None:
            parts.append(f"{self.report['cost']:.4g} {self.currency}".rstrip())
        return "; ".join(parts)

    def _keep_reading(self) -> None:
        if time.monotonic() - self._read_at > SECONDS_BETWEEN_READINGS:
            self._read_at = time.monotonic()
            self._read_counters()

    def _read_counters(self) -> dict[str, tuple[str, float]]:
        for each in list(self._counters):
            try:
                self._readings[each.device] = (each.source, each.joules())
            except (OSError, ValueError) as error:
                self._counters.remove(each)
                warnings.warn(f"The energy of {each.device} is not counted any more: {error}", stacklevel=2)
        return self._readings

    def _sum_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks' counters and those of earlier starts, into `report` and the file, on the first rank."""
        measured: dict[str, tuple[str, float]] = {}
        for each in _gathered(self._read_counters()):
            measured |= each
        if not trainer.is_global_zero:
            return
        tokens = offered(pl_module, CountsTokens)
        self.report = self._total(measured, None if tokens is None else tokens.tokens_seen)
        if is_rehearsal(trainer):
            return
        try:
            write_text(Path(trainer.default_root_dir) / NAME, json.dumps(self.report, indent=1) + "\n")
        except OSError as error:
            warnings.warn(f"{NAME} was not written: {error}", stacklevel=2)

    def _total(self, measured: dict[str, tuple[str, float]], tokens: int | None) -> dict[str, Any]:
        own_seconds = time.monotonic() - self._started
        seconds = own_seconds + self._earlier.get("seconds", 0.0)
        devices = dict(self._earlier.get("devices", {}))
        for device, (source, own_joules) in measured.items():
            before = devices.get(device, {}).get("joules", 0.0)
            devices[device] = {"source": source, "joules": before + own_joules}
        estimated = self._earlier.get("estimated_joules", 0.0)
        if not measured and self.assumed_watts is not None:
            estimated += own_seconds * self.assumed_watts
        joules = None
        if devices or estimated:
            joules = estimated + sum(each["joules"] for each in devices.values())
        sources = [f"measured by {each}" for each in sorted({each["source"] for each in devices.values()})]
        if estimated:
            sources.append("an estimate from assumed_watts")
        cost = None
        if self.price_per_hour is not None:
            cost = seconds / 3600 * self.price_per_hour
        elif self.price_per_kwh is not None and joules is not None:
            cost = joules / JOULES_PER_KWH * self.price_per_kwh
        return {
            "joules": joules,
            "kwh": None if joules is None else joules / JOULES_PER_KWH,
            "joules_per_token": joules / tokens if joules is not None and tokens else None,
            "cost": cost,
            "currency": self.currency,
            "source": " and ".join(sources) or "not measured",
            "missing": self._missing,
            "estimated_joules": estimated,
            "seconds": seconds,
            "tokens": tokens,
            "devices": devices,
        }


def _gathered(own: Any) -> list[Any]:
    """What each rank has."""
    if not dist.is_initialized():
        return [own]
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    return ranks


def _read(path: Path) -> dict[str, Any]:
    """What earlier starts of the run came to; nothing where the file is not as it was written."""
    try:
        found = json.loads(read_text(path))
        devices = {
            name: {"source": str(d["source"]), "joules": _number(d["joules"])} for name, d in found["devices"].items()
        }
        numbers = {name: _number(found[name]) for name in ("seconds", "estimated_joules")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path} is not as it was written, and earlier energy is not added: {error!r}", stacklevel=2)
        return {}
    return numbers | {"devices": devices}


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no amount")
    return float(value)
