"""Whether a fine-tune made the network less safe."""

from callbacks.safety.gate import SafetyGate

__all__ = ["SafetyGate"]
