"""The flags that a command has of its own."""

import argparse
from typing import NoReturn

from llm_lightning.errors import UserError


class FlagParser(argparse.ArgumentParser):
    """argparse's, for which a wrong flag is a user's mistake as any other: told in one message, without secrets."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of exiting."""
        raise UserError(message)
