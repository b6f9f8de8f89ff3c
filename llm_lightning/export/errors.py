"""Why an export is not there."""

from llm_lightning.errors import UserError


class RefusedError(UserError):
    """What was written does not answer as the model that was trained; nothing is left of it."""
