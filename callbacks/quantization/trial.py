"""A network on trial: quantized by one scheme after the other, and measured beside the original."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from callbacks.errors import CallbackError
from callbacks.monitoring.measurement import Batch, folder_bytes, measure_quality, measure_speed, memory_bytes
from callbacks.quantization import layers, report, schemes
from callbacks.quantization.choice import Measured
from callbacks.quantization.request import Request, load_network

MANIFEST = "quantization_manifest.json"
PROMPT_TOKENS, NEW_TOKENS = 128, 32


class Trial:
    """The original network, and how others are measured beside it.

    Args:
        folder: With the original.
        device: Where all is measured.
        batches: To measure on.

    Attributes:
        network: The original.
        original: What was measured of it.

    Raises:
        CallbackError: The batches have no labels.
    """

    def __init__(self, folder: Path, device: torch.device, batches: Sequence[Batch]) -> None:
        if "labels" not in batches[0] or "input_ids" not in batches[0]:
            raise CallbackError(f"Quantization measures on `input_ids` and `labels`; validation has {[*batches[0]]}.")
        self.folder = folder
        self.device = device
        self.batches = batches
        self.network = load_network(folder, device)
        self.original = self._measure("original", self.network, folder)

    def run(self, name: str, request: Request, calibration: dict[str, Any] | None) -> Measured:
        """Quantize, load what was written as anyone would, measure that, and write its manifest.

        Raises:
            CallbackError: The library left a layer as it was.
        """
        start = time.monotonic()
        torch.manual_seed(request.seed)
        schemes.SCHEMES[name].quantize(request)
        request.finish()
        seconds = time.monotonic() - start
        quantized = load_network(request.output, self.device)
        names = [layer for layer in layers.linear_layers(self.network) if layer not in request.kept]
        layers.check_quantized(quantized, names, name)
        measured = self._measure(name, quantized, request.output, seconds)
        report.write_json(request.output / MANIFEST, self._manifest(name, request, names, measured, calibration))
        return measured

    def as_dict(
        self, candidates: Sequence[Measured], kept: Measured | None, calibration: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The whole report, for JSON."""
        return {
            "kept": None if kept is None else kept.name,
            "original": self.original.as_dict(),
            "schemes": {each.name: each.as_dict() for each in candidates},
            "calibration": calibration,
            "measured": self._circumstances(),
        }

    def _measure(self, name: str, network: Any, folder: Path, seconds: float = 0.0) -> Measured:
        # Before the first evaluation: some kernels repack weights there.
        memory = memory_bytes(network)
        reference = None if network is self.network else self.network
        quality = measure_quality(network, self.batches, reference)
        speed = measure_speed(network, self.batches[0]["input_ids"][:1, :PROMPT_TOKENS], NEW_TOKENS)
        return Measured(name, quality, speed, folder_bytes(folder), memory, seconds)

    def _manifest(
        self, name: str, request: Request, names: Sequence[str], measured: Measured, calibration: dict[str, Any] | None
    ) -> dict[str, Any]:
        scheme, linear = schemes.SCHEMES[name], layers.linear_layers(self.network)
        return {
            "scheme": name,
            "bits": request.bits,
            "group_size": request.group_size,
            "symmetric": request.symmetric if scheme.symmetric is not None else None,
            "dtype": str(request.dtype).removeprefix("torch."),
            "library": scheme.library,
            "versions": {each: version(each) for each in (scheme.library, "transformers", "torch")},
            "calibration": calibration if scheme.calibrated else None,
            "options": {key: str(value) for key, value in request.options.items()},
            "layers": {
                "quantized": len(names),
                "kept": list(request.kept),
                "share_of_weights": layers.num_weights([linear[each] for each in names]) / self._num_weights(),
            },
            "cost": scheme.cost or None,
            "original": self.original.as_dict(),
            "quantized": measured.as_dict(),
            "measured": self._circumstances(),
        }

    def _num_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _circumstances(self) -> dict[str, Any]:
        return {
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "num_batches": len(self.batches),
            "prompt_tokens": min(PROMPT_TOKENS, self.batches[0]["input_ids"].shape[1]),
            "new_tokens": NEW_TOKENS,
        }
