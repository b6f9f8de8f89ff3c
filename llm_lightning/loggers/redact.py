"""Settings without their secrets, fit to be sent to a tracking server."""

from safety.redaction import HIDDEN, redact, redact_arguments

__all__ = ["HIDDEN", "redact", "redact_arguments"]
