"""Settings without their secrets, fit to be sent to a tracking server."""

import re
from typing import Any

HIDDEN = "***"

# Whole words of a setting's name; `tokenizer`, `max_new_tokens` and `pad_token` hold none of them.
_SECRET_WORDS = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey", "auth"}
_SECRET_NAMES = re.compile(
    r"(^|_)(api|access|private|secret|encryption|signing|account|ssh)_keys?(_id)?($|_)"
    r"|^(hf|hub|api|access|auth|bearer|refresh|session|security|github|gitlab|wandb|huggingface|id|use_auth|deploy|bot)"
    r"_token$|^token$|_(api|access|auth|bearer|refresh|session|security|hub)_token$"
)
_SECRET_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(AKIA|ASIA)[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|wandb_v1_\w{20,}|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
# A W&B key looks like a commit, which is worth keeping.
_COMMIT_NAMES = re.compile(r"revision|commit|sha|hash|digest")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_URL_SECRETS = re.compile(r"(?i)([?&](?:[\w-]*(?:token|key|secret|password|signature|sig)))=[^&\s#]+")


def redact(config: Any) -> Any:
    """A copy of a config in which secrets are `***`.

    Secrets are known by the name they stand under (`api_key`, `hf_token`, `password`, ...), by their look (keys of
    Hugging Face, OpenAI, GitHub, AWS, W&B, ... anywhere in a text), or by their place in a URL.

    Args:
        config: Dicts, lists and plain values, nested at will.
    """
    if isinstance(config, dict):
        return {name: _redact_named(str(name), value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(redact, config))
    if isinstance(config, str):
        text = _SECRET_VALUES.sub(HIDDEN, config)
        return _URL_SECRETS.sub(rf"\1={HIDDEN}", _URL_CREDENTIALS.sub(HIDDEN, text))
    return config


def redact_arguments(arguments: list[str]) -> list[str]:
    """A command line's arguments without secrets, both as `--api_key=VALUE` and as `--api_key VALUE`."""
    redacted: list[str] = []
    name = ""
    for argument in arguments:
        is_option = argument.startswith("--")
        if is_option and "=" in argument:
            option, value = argument.split("=", 1)
            redacted.append(f"{option}={_redact_named(option, value)}")
        else:
            redacted.append(argument if is_option else str(_redact_named(name, argument)))
        name = argument if is_option and "=" not in argument else ""
    return redacted


def _redact_named(name: str, value: Any) -> Any:
    is_secret = _is_secret_name(name) and not isinstance(value, bool | None)
    if is_secret and not isinstance(value, dict | list | tuple):
        return HIDDEN
    if is_secret:
        return _hide_all(value)
    if _COMMIT_NAMES.search(name.lower()) and isinstance(value, str) and _COMMIT.fullmatch(value):
        return value
    return redact(value)


def _hide_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hide_all(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_all(inner) for inner in value]
    return HIDDEN


def _is_secret_name(name: str) -> bool:
    # apiKey, API-KEY and data.api_key all read as api_key
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = re.sub(r"[^A-Za-z0-9]+", "_", words).lower().strip("_")
    return bool(_SECRET_WORDS & set(words.split("_")) or _SECRET_NAMES.search(words))
