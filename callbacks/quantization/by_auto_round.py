"""Schemes of AutoRound: 2 to 4 bits, packed, with rounding and ranges that are learned (arXiv:2309.05516)."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.quantization.request import Request

# The other packings of 4 bits that are not symmetric cannot be loaded on a CPU without auto-round-lib.
PACKING = "auto_round:gptqmodel"

LEAST_SCALE = 1e-5
"""AutoRound's, for the groups whose weights are all zero."""


def tuned(request: Request) -> None:
    """Rounding learned layer by layer, so that each layer's outputs on the calibration rows change least."""
    rows = torch.stack(list(request.rows))
    data = [{"input_ids": row[None]} for row in rows]
    _quantize(request, dataset=data, nsamples=len(data), seqlen=rows.shape[1], batch_size=min(8, len(data)))


def nearest(request: Request) -> None:
    """Each weight rounded to the nearest level, without data."""
    _quantize(request, iters=0, disable_opt_rtn=True)


def rounded_to_nearest(weight: Tensor, group_size: int, symmetric: bool) -> Tensor:
    """A weight (out, in) as `nearest` leaves it in 4 bits: AutoRound's formulas, whose scales are in half precision."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        scale = _half(torch.where(high < -low, -low, -high) / 8)
        values = (groups / scale).round().clamp(-8, 7) * scale
    else:
        scale = _half((high - low) / 15)
        zero = (-low / scale).round()
        values = (((groups / scale).round() + zero).clamp(0, 15) - zero) * scale
    return values.flatten(1).to(weight.dtype)


def _half(scale: Tensor) -> Tensor:
    """As it is stored, and never too near to zero to divide by."""
    scale = scale.half().float()
    return torch.where(scale < 0, scale.clamp(max=-LEAST_SCALE), scale.clamp(min=LEAST_SCALE))


def _quantize(request: Request, **settings: Any) -> None:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    logging.getLogger("autoround").setLevel(logging.ERROR)  # below it, it speaks to developers
    method = AutoRound(
        request.load(),
        _tokenizer(AutoTokenizer, request.source),
        bits=request.bits,
        group_size=request.group_size,
        sym=request.symmetric,
        ignore_layers=",".join(request.kept),
        device_map=str(request.device),
        seed=request.seed,
        **settings | dict(request.options),
    )
    method.quantize()
    method.save_quantized(str(request.output), format=PACKING, inplace=True)


def _tokenizer(loader: Any, folder: Path) -> Any:
    """It tells AutoRound which tokens are padding; a network saved without one is quantized without it."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    return loader.from_pretrained(folder, trust_remote_code=False)
