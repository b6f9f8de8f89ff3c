"""Texts and settings without their secrets, fit for files, logs and tracking servers.

A secret is known by the name it stands under (`api_key`, `hf_token`, `Authorization`, ...), in settings as in the text
of a dictionary, a URL or a shell line; by its look (keys of Hugging Face, OpenAI, GitHub, AWS, W&B, ...); by its place
in a URL; or because it was seen under such a name before (`remember`), wherever it is repeated.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

HIDDEN = "***"
SHORTEST_REMEMBERED = 8  # characters; shorter values would be found in ordinary words

_WORDS = {
    "password", "passwd", "passphrase", "passcode", "pwd", "pass", "secret", "secrets", "credential", "credentials",
    "apikey", "authtoken", "accesskey", "secretkey", "auth", "authorization", "bearer", "cookie", "cookies", "jwt",
    "signature", "sig", "headers", "netrc", "dsn",
}  # fmt: skip
_KEYS = re.compile(
    r"(^|_)(api|access|private|secret|encryption|signing|account|ssh|master|shared|client|license|admin|service"
    r"|subscription|auth|storage|sas|hf|hub|huggingface|wandb|openai|anthropic|azure|aws|gcp|google|mistral|groq|cohere"
    r"|together|openrouter|replicate|deepseek|fireworks)_keys?(_id)?($|_)"
)
_TOKEN = re.compile(r"(^|_)token$")
_TOKEN_OF_A_MODEL = re.compile(
    r"(^|_)(pad|eos|bos|unk|mask|cls|sep|special|stop|start|end|begin|image|video|audio|boi|eoi|new|next|first|last|per|each"
    r"|num|max|min|think|tool|turn|end_of_text|by|of|in|a|the|one|every|this|that|no)_token$"
)
# Names of where a secret is, not of what it is.
_PLACE = re.compile(r"_(variable|env|env_var|envvar|file|path|folder|dir|name|type|method|mode|class|schema)$")

_LOOKS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(AKIA|ASIA)[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|wandb_v1_\w{20,}|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
# A W&B key looks like a commit, which is worth keeping.
_COMMIT_NAMES = re.compile(r"revision|commit|sha|hash|digest")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Up to the last @ before the path; a password with a slash is known by not being a port.
_URL_USER = re.compile(r"(?<=://)(?:[^/\s?#\"']+|[^/\s:@\"']*:(?!\d+(?:/|$))[^\s\"']+)(?=@)")
_URL_QUERY = re.compile(
    r"(?i)([?&;#](?:[\w.%\[\]-]{0,60}(?:token|key|secret|passw|pwd|signature|sig|auth|credential|code|jwt)[\w.%\[\]-]{0,60}))=[^&;#\s\"']+"
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_VALUE = re.compile(
    r"\\+(?P<quote>[\"']).*?\\+(?P=quote)|\"(?:\\.|[^\"\\])*\"|'(?:''|\\.|[^'\\])*'"
    r"|[|>][+-]?\n(?:[ \t]+[^\n]*\n?)+|(?:-[ ]+[^\n]+\n?[ \t]*)+"
    r"|(?i:bearer|basic|token)\s+[^\s,;}\])\"']+|(?:[^\s,;}\])&\"'\\]|,(?=[^\s\"']))+"
)
# Possessive, from the beginning of a word on: a long text without names must cost no more than its length.
_NAME = re.compile(r"(?<![\w.-])(?:[A-Za-z_][\w.-]*+\\*+[\"']?+\s*+[:=]\s*+|--?+[A-Za-z][\w.-]*+(?:=|\s++(?!-)))")
# Small numbers ("pass: 3"), what a shell puts in, and the fragment behind a URL's query that was seen to before.
_NO_SECRET = re.compile(r"[\d.,e+-]{1,5}$|\$\(|\$\{|\$[A-Z_]+$|\*\*\*#")
_CLOSING = {"{": "}", "[": "]"}
_LOGIN = re.compile(r"((?:wandb|hf|huggingface-cli)\s+(?:auth\s+)?login(?:\s+--?[\w-]+)*\s+)(?!-)\S{8,}")
_PLAIN = {"", "none", "null", "true", "false", HIDDEN}

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


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is to be hidden: `apiKey`, `API-KEY` and `data.api_key` read as `api_key`."""
    return _is_secret_name(name) if len(name) < 200 else False


@cache
def _is_secret_name(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = re.sub(r"[^A-Za-z0-9]+", "_", words).lower().strip("_")
    if _PLACE.search(words):
        return False
    if _WORDS & set(words.split("_")) or _KEYS.search(words):
        return True
    return bool(_TOKEN.search(words)) and not _TOKEN_OF_A_MODEL.search(words)


def _redact_named(name: str, value: Any) -> Any:
    if is_secret_name(name) and not isinstance(value, bool | None):
        return _hide_all(value)
    if _COMMIT_NAMES.search(name.lower()) and isinstance(value, str) and _COMMIT.fullmatch(value):
        return value
    return redact(value)


def _redact_value(name: str, value: str) -> Any:
    """Of an argument; the text of a dictionary keeps its form."""
    if is_secret_name(name) and value.lower() not in _PLAIN:
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
    elif hidden and str(config).lower() not in _PLAIN:
        yield str(config)
    elif isinstance(config, str) and "://" in config:
        yield from (match[0].rpartition(":")[2] for match in _URL_USER.finditer(config))
        yield from (match[0].partition("=")[2] for match in _URL_QUERY.finditer(config))


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
    text = hide_known(text)
    text = _URL_QUERY.sub(rf"\1={HIDDEN}", _URL_USER.sub(HIDDEN, _LOOKS.sub(HIDDEN, text)))
    text = _LOGIN.sub(rf"\1{HIDDEN}", _SCHEME.sub(rf"\1 {HIDDEN}", text))
    return _hide_pairs(text)


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


def _hide_pairs(text: str) -> str:
    """`NAME: VALUE`, `NAME=VALUE` and `--NAME VALUE`, where the name is that of a secret."""
    parts, done = [], 0
    for match in _NAME.finditer(text):
        if match.start() < done or not is_secret_name(re.split(r"[\s:=\\\"']", match[0], maxsplit=1)[0]):
            continue
        start = match.end()
        value = text[start : _end_of_value(text, start)]
        bare = value.strip("\\\"'")
        if bare.lower() in _PLAIN or _NO_SECRET.match(bare):
            continue
        quote = value[0] if value[0] in "\"'" else ""
        parts += [text[done:start], f"{quote}{HIDDEN}{quote}"]
        done = start + len(value)
    return "".join([*parts, text[done:]])


def _end_of_value(text: str, start: int) -> int:
    opening = text[start : start + 1]
    if opening not in _CLOSING:
        return match.end() if (match := _VALUE.match(text, start)) else start
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == _CLOSING[opening])
        if depth == 0:
            return place + 1
    return len(text)
