"""Short names of our own classes in YAML, also where a library has a class of the same name."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError


def prefer_in_yaml(classes: Mapping[str, type]) -> None:
    """Let `class_path: NAME` mean one of `classes`.

    jsonargparse looks a short name up among all imported classes and calls it ambiguous where there are two, as
    `EarlyStopping` is ours and Lightning's. Here the short name is ours; a library's needs its whole import path.

    Args:
        classes: by short name, each importable by that name from the package that holds it.
    """
    load = get_loader("yaml")
    paths = {name: f"{one.__module__.split('.')[0]}.{name}" for name, one in classes.items()}

    def loaded(text: str) -> Any:
        return _with_paths(load(text), paths)

    set_loader("yaml", loaded, exceptions=(YAMLError,))


def _with_paths(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_with_paths(each, paths) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: paths.get(inner, inner) if key == "class_path" and isinstance(inner, str) else _with_paths(inner, paths)
        for key, inner in value.items()
    }
