"""The one exception for mistakes a user can mend: the command line prints its message and exits with code 2."""


class UserError(ValueError):
    """A setting, a path or an input that cannot work; the message names it, its value and the way out."""
