"""What a library is asked to do: quantize the network in one folder into another."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNCOPIED = (".safetensors", ".bin", ".pt")
"""Files with weights; all others that the quantized network's folder lacks come from the original's."""

GENERATION = "generation_config.json"
"""Comes from the original whatever a library writes, so that the quantized network stops where the original does."""


@dataclass(frozen=True)
class Request:
    """One scheme for one network.

    Args:
        source: Model folder of the original, which stays as it is.
        output: Where the quantized network is written; made where it is missing.
        bits: Of a weight.
        group_size: Consecutive input features of a row that share a scale; None for what the scheme does by itself.
        symmetric: Whether the levels lie around zero, or between the least and the greatest weight of a group.
        kept: Names of the linear layers that stay in high precision.
        device: Where to quantize.
        dtype: Of all that stays unquantized, and of the arithmetic.
        rows: Calibration data, rows of (T,) token ids; empty for schemes that need none.
        seed: Of what a calibrated method draws.
        options: For the library, over what the scheme says.
    """

    source: Path
    output: Path
    bits: int
    group_size: int | None
    symmetric: bool
    kept: Sequence[str]
    device: torch.device
    dtype: torch.dtype
    rows: Sequence[Tensor] = ()
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, **options: Any) -> Any:
        """The original network, on the device and in the dtype."""
        return load_network(self.source, self.device, dtype=self.dtype, **options)

    def finish(self) -> None:
        """Give the quantized network the tokenizer and all else that lies beside the original's weights."""
        for path in self.source.rglob("*"):  # a tokenizer's templates by name are in a folder of their own
            place = self.output / path.relative_to(self.source)
            is_weight = path.suffix in UNCOPIED or path.name.endswith(".index.json")
            if path.is_file() and not is_weight and (path.name == GENERATION or not place.exists()):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
        # Some libraries write the dtype that they calibrated in, and `dtype="auto"` would load that.
        path = self.output / "config.json"
        config = json.loads(path.read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(self.dtype).removeprefix("torch.")
        path.write_text(json.dumps(config, indent=2))
        for weights in self.output.glob("*.safetensors"):
            weights.chmod(path.stat().st_mode)  # safetensors writes them for their owner alone, whatever the umask


def load_network(folder: Path, device: torch.device, **options: Any) -> Any:
    """The network in a model folder, as anyone would load it, on a device."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"dtype": "auto", "trust_remote_code": False} | options
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, **options)
