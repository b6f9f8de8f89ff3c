"""Texts and settings without their secrets, fit for files, logs and tracking servers.

A secret is known by the name it stands under (`api_key`, `hf_token`, `Authorization`, ...), in settings as in the text
of a dictionary, a URL or a shell line; by its look (keys of Hugging Face, OpenAI, GitHub, AWS, W&B, ...); by its place
in a URL; or because it was seen under such a name before (`remember`), wherever it is repeated.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_lightning_safety.secret_names import is_secret_name
from llm_lightning_safety.secret_texts import HIDDEN, PLAIN, decoded, hide_secrets, in_urls

__all__ = ["HIDDEN", "hide_known", "redact", "redact_arguments", "remember", "remember_arguments"]

SHORTEST_REMEMBERED = 8  # characters; shorter values would be found in ordinary words

_COMMIT_NAMES = re.compile(r"revision|commit|sha|hash|digest")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_remembered: set[str] = set()


def redact(config: Any) -> Any:
    """A copy of a config in which secrets are `***`.

    Args:
        config: Dicts, lists and plain values, nested at will; of a text, what is secret in it is replaced.
    """
    if isinstance(config, Mapping):
        return {redact(name): _redact_named(str(name), value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [*map(redact, config)] if isinstance(config, list) else tuple(map(redact, config))
    return _redact_text(config) if isinstance(config, str) else config


def redact_arguments(arguments: list[str]) -> list[str]:
    """A command line's arguments without secrets, both as `--api_key=VALUE` and as `--api_key VALUE`."""
    redacted: list[str] = []
    name = ""
    for argument in arguments:
        is_option = argument.startswith("--")
        if is_option and "=" in argument:
            option, value = argument.split("=", 1)
            redacted.append(f"{option}={_redact_value(option, value)}")
        else:
            redacted.append(argument if is_option else str(_redact_value(name, argument)))
        name = argument if is_option and "=" not in argument else ""
    return redacted


def remember(config: Any) -> None:
    """Note what stands under secret names, so that it is hidden from now on wherever it is repeated.

    Args:
        config: As for `redact`; `name_variable: NAME` notes what the environment has under NAME, where `name` is that
            of a secret.
    """
    _remembered.update(value for value in _secrets_in(config) if len(value) >= SHORTEST_REMEMBERED)


def remember_arguments(arguments: list[str]) -> None:
    """Note the secrets of a command line."""
    name = ""
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else (name, "=", argument)
        if equals:
            remember({option: value, "": _structure(value)})
        name = "" if equals else option


def _redact_named(name: str, value: Any) -> Any:
    if is_secret_name(name) and not isinstance(value, bool | None):
        return _hide_all(value)
    if _COMMIT_NAMES.search(name.lower()) and isinstance(value, str) and _COMMIT.fullmatch(value):
        return value
    return redact(value)


def _redact_value(name: str, value: str) -> Any:
    """Of an argument; the text of a dictionary keeps its form."""
    if is_secret_name(name) and value.lower() not in PLAIN:
        return HIDDEN
    if isinstance(structure := _structure(value), dict | list):
        for secret in sorted(set(_secrets_in(structure)), key=len, reverse=True):
            value = value.replace(secret, HIDDEN)
    return _redact_named(name, value)


def _structure(value: str) -> Any:
    """What the text of a dictionary or a list holds, None for any other text."""
    if not value.lstrip().startswith(("{", "[")):
        return None
    import yaml

    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        return None


def _secrets_in(config: Any, hidden: bool = False) -> Iterator[str]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _secrets_in(value, hidden or is_secret_name(str(name)))
            yield from _from_environment(str(name), value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _secrets_in(value, hidden)
    elif hidden and str(config).lower() not in PLAIN:
        yield str(config)
    elif isinstance(config, str):
        yield from in_urls(config)


def _from_environment(name: str, value: Any) -> Iterator[str]:
    """`api_key_variable: NAME` is no secret, and what the environment has under NAME is."""
    if isinstance(value, str) and (place := re.search(r"_(variable|env|env_var|envvar)$", name)):
        yield from [os.environ[value]] if is_secret_name(name[: place.start()]) and value in os.environ else []


def _hide_all(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _hide_all(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_all(inner) for inner in value]
    return value if isinstance(value, bool | None) else HIDDEN


def _redact_text(text: str) -> str:
    for encoded, plain in decoded(text):
        if (clean := _redact_plain(plain)) != plain:
            text = text.replace(encoded, clean)
    return _redact_plain(text)


def _redact_plain(text: str) -> str:
    return hide_secrets(hide_known(text))


def hide_known(text: str) -> str:
    """A text without the secrets that are known by now, those of the environment among them."""
    for secret in sorted(_remembered | _of_environment(), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def _of_environment() -> set[str]:
    """What stands under secret names; a place is none (PWD is the working directory, SSH_AUTH_SOCK a socket)."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST_REMEMBERED and is_secret_name(name)}
    return {value for value in found if not os.path.exists(value)}  # noqa: PTH110 (which takes no overlong value)
