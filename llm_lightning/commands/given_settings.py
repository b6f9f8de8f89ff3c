"""The settings that a command line gives, read without building what they name."""

import os
from typing import Any

from llm_lightning.cli import USER_ERRORS, TrainingCLI
from llm_lightning.errors import UserError
from llm_lightning.messages import readable
from llm_lightning.settings.environment import with_environment


class _SettingsOnly(TrainingCLI):
    """Reads the settings of a command and builds nothing."""

    def instantiate_classes(self) -> None:
        """Leave the parts unbuilt."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: the settings are all that is wanted."""


def read_settings(args: list[str]) -> Any:
    """The settings that a command line gives, defaults that depend on others filled in, as a namespace.

    Raises:
        UserError: a setting does not exist, or has a value of another type.
    """
    try:
        cli = _SettingsOnly(with_environment(args, os.environ))
    except USER_ERRORS as error:
        raise UserError(readable(error)) from error
    return cli.config[args[0]]
