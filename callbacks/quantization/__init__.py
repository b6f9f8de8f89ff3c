"""Post-training quantization, made of schemes, a budget and measurements; and training that prepares for it."""

from callbacks.quantization.aware import QuantizationAwareTraining
from callbacks.quantization.calibration import Calibration
from callbacks.quantization.callback import Quantization
from callbacks.quantization.schemes import SCHEMES

__all__ = ["SCHEMES", "Calibration", "Quantization", "QuantizationAwareTraining"]
