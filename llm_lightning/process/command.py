"""What commands with flags of their own have in common."""

from collections.abc import Callable

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report


def run_command(
    args: list[str],
    usage: str,
    work: Callable[[list[str]], int | None],
    *,
    debug: bool,
    mistakes: tuple[type[Exception], ...] = (UserError, OSError),
) -> int:
    """Print the usage where nothing or help is asked for, else work; a user's mistake becomes one message.

    Args:
        args: what follows the command's name.
        usage: its text.
        work: is given the arguments; may return an exit code, for what ended badly and is no mistake.
        debug: show the traceback of an error.
        mistakes: what the user can mend; all else is an error of ours.

    Returns:
        The exit code: 0, what `work` returned, or 2 for a mistake.
    """
    if not args or "--help" in args or "-h" in args:
        print(usage, end="")
        return 0
    try:
        return work(args) or 0
    except mistakes as error:
        return report(error, debug)
