"""Settings without their secrets, fit to be sent to a tracking server."""

from llm_lightning_safety.redaction import HIDDEN, redact, redact_arguments

__all__ = ["HIDDEN", "redact", "redact_arguments"]
