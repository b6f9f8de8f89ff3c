"""Post-training quantization: one callback, made of schemes, a budget and measurements."""

from callbacks.quantization.calibration import Calibration
from callbacks.quantization.callback import Quantization
from callbacks.quantization.schemes import SCHEMES

__all__ = ["SCHEMES", "Calibration", "Quantization"]
