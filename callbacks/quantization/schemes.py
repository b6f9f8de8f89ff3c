"""The schemes by name: which library does what, in how many bits, where."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from callbacks.errors import CallbackError
from callbacks.quantization import by_auto_round, by_bitsandbytes, by_torchao
from callbacks.quantization.request import Request

DEFAULT_GROUP_SIZE = 64
"""128, a common default, does not divide the widths of many small networks."""

INSTALL = {
    "torchao": "pip install 'llm-lightning[quantization]'",
    "auto_round": "pip install 'llm-lightning[autoround]'",
    "bitsandbytes": "pip install 'llm-lightning[qlora]'",
}


@dataclass(frozen=True)
class Scheme:
    """A way to quantize the linear layers of a network.

    Args:
        quantize: Does it.
        library: The package that it and loading the result need.
        bits: Of a weight.
        grouped: Whether `group_size` means something to it.
        symmetric: Whether its levels lie around zero, unless told otherwise; None where nothing else is possible.
        calibrated: Whether it needs data.
        capability: Least compute capability of a CUDA device; None where it also runs on a CPU.
        dtype: The one dtype it can leave the rest in; None for any.
        multiple: What each layer's widths must be a multiple of.
        cost: What an experiment costs, in words; empty for schemes that are of use.
        rounded: The values of a weight (out, in) that the quantized network computes with, by keywords `group_size` and
            `symmetric`; None where these depend on more than the weight.
        rounded_inputs: Those of a layer's inputs (..., in); None where inputs stay as they are.
    """

    quantize: Callable[[Request], None]
    library: str
    bits: int
    grouped: bool = False
    symmetric: bool | None = None
    calibrated: bool = False
    capability: tuple[int, int] | None = None
    dtype: torch.dtype | None = None
    multiple: int = 1
    cost: str = ""
    rounded: Callable[..., Tensor] | None = None
    rounded_inputs: Callable[[Tensor], Tensor] | None = None

    def runs_on(self, device: torch.device) -> bool:
        """Whether its kernels exist there."""
        if self.capability is None:
            return True
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= self.capability


def _auto_round(bits: int, cost: str = "") -> Scheme:
    return Scheme(
        by_auto_round.tuned, "auto_round", bits, grouped=True, symmetric=False, calibrated=True, multiple=32, cost=cost
    )


UNPREPARED = "networks that were not trained for it are ruined, and torchao stores a byte for each weight"
SCHEMES = {
    "int8": Scheme(by_torchao.int8, "torchao", 8, rounded=by_torchao.rounded_to_int8),
    "int8-dynamic": Scheme(
        by_torchao.int8_dynamic, "torchao", 8, rounded=by_torchao.rounded_to_int8,
        rounded_inputs=by_torchao.rounded_to_int8,
    ),
    "float8": Scheme(by_torchao.float8, "torchao", 8),
    "float8-dynamic": Scheme(by_torchao.float8_dynamic, "torchao", 8, capability=(8, 9), dtype=torch.bfloat16),
    "int4": _auto_round(4),
    "int4-rtn": Scheme(
        by_auto_round.nearest, "auto_round", 4, grouped=True, symmetric=False, multiple=32,
        rounded=by_auto_round.rounded_to_nearest,
    ),
    "int4-torchao": Scheme(
        by_torchao.int4, "torchao", 4, grouped=True, capability=(8, 0), dtype=torch.bfloat16, multiple=16
    ),
    "nf4": Scheme(by_bitsandbytes.nf4, "bitsandbytes", 4),
    "int3": _auto_round(3, "small networks lose much"),
    "int2": _auto_round(2, "small networks are ruined"),
    "ternary": Scheme(
        by_torchao.ternary, "torchao", 2, grouped=True, cost=UNPREPARED, rounded=by_torchao.rounded_to_three
    ),
    "int1": Scheme(
        by_torchao.binary, "torchao", 1, grouped=True, cost=UNPREPARED, rounded=by_torchao.rounded_to_signs
    ),
}  # fmt: skip


def check_names(names: Sequence[str]) -> None:
    """Raise `CallbackError` for names that there are not, or twice."""
    if not names:
        raise CallbackError(f"Quantization.schemes is empty: name some of {', '.join(SCHEMES)}.")
    for name in names:
        if name not in SCHEMES:
            raise CallbackError(f"Quantization.schemes: there is no {name!r}; there are {', '.join(SCHEMES)}.")
        if names.count(name) > 1:
            raise CallbackError(f"Quantization.schemes: {name} is named twice.")


def check_installed(names: Sequence[str]) -> None:
    """Raise `CallbackError` for schemes whose library is missing."""
    for name in names:
        library = SCHEMES[name].library
        if importlib.util.find_spec(library) is None:
            raise CallbackError(
                f"Quantization.schemes: {name} needs {library}, which is not installed: {INSTALL[library]}."
            )


def check_device(names: Sequence[str], device: torch.device) -> None:
    """Raise `CallbackError` for schemes that the device cannot run, and name those that it can."""
    for name in names:
        if not SCHEMES[name].runs_on(device):
            major, minor = SCHEMES[name].capability or (0, 0)
            able = ", ".join(other for other, scheme in SCHEMES.items() if scheme.runs_on(device))
            raise CallbackError(
                f"Quantization.schemes: {name} needs a CUDA device of compute capability {major}.{minor}, and this is "
                f"{device}. Here run {able}."
            )
