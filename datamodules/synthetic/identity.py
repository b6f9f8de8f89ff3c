"""What an object of the configuration was made from, so that what it made can be named by it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any


def settings_of(value: Any) -> Any:
    """The class and the arguments of an object as JSON, of nested ones too; plain values are themselves.

    Read are the attributes that are called as the arguments, of the class and of those it passes arguments on to.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): settings_of(each) for name, each in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [settings_of(each) for each in value]
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    try:
        arguments = {name for base in kind.__mro__[:-1] for name in inspect.signature(base).parameters}
    except ValueError:  # a class that is not written in Python, such as torch.device
        return str(value)
    known = {name: settings_of(getattr(value, name)) for name in sorted(arguments) if hasattr(value, name)}
    return {"class": f"{kind.__module__}.{kind.__qualname__}"} | known
