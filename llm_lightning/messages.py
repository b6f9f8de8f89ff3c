"""Errors as a user wants to read them: the field, the value and the way out, in a line or two."""

import re

from jsonargparse import ArgumentError

from llm_lightning_safety.redaction import redact

# What jsonargparse wraps around the one line that matters, once for each level of nesting.
_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value|Expected a <class 'NoneType'>|Expected a path but "
)
# What it adds for each other type that the setting might have had.
_ASIDE = re.compile(
    r"Not a valid subclass of|Subclass types expect one of|a class path \(str\)|a dict with|Expected a <class 'list'>"
)
_KEY = re.compile(r"Parser key \"([^\"]+)\":\s*")
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_CALLABLE = re.compile(r"Type typing\.Callable.*? expects a function or a callable class: ")
_REWORDED = (
    (
        re.compile(r"Expected a dot import path string: (\S+)$", re.MULTILINE),
        r"there is no class \1 (one from outside of this project needs its whole import path)",
    ),
    (re.compile(r"Option '(\S+?)' is not accepted"), r"it has no setting '\1'"),
    (re.compile(r"Expected a <class '(\w+)'>"), r"expected a value of type \1"),
    (re.compile(r"unrecognized arguments: "), "there is no setting "),
    (re.compile(r"the following arguments are required: \w+\."), "a setting is missing: --"),
    (re.compile(r"the following arguments are required: "), "a setting is missing: "),
    (re.compile(r"Expected a typing.Literal\[(.*)\]\. Got value: "), r"use one of \1, not "),
    (
        re.compile(r"Multiple subclasses with name (\w+)\. Give the full class path to avoid ambiguity: "),
        r"\1 is the name of several classes; give one by its import path: ",
    ),
)


def readable(error: BaseException) -> str:
    """The message of an error without the nesting that libraries wrap around it, and without secrets."""
    if isinstance(error, OSError) and error.filename:
        return redact(f"{error.filename}: {error.strerror}")
    text = redact(str(error))  # as long as its lines are indented, which says where a secret ends
    if isinstance(error, ArgumentError) or str(error).startswith("Does not validate against"):
        return _flatten(text)
    return text


def _flatten(text: str) -> str:
    """`model.backbone.config (LlamaConfig): it has no setting 'hiden_size'`."""
    keys: list[str] = []
    class_name, messages = "", []
    for line in text.splitlines():
        keys += _KEY.findall(line)
        line = _CALLABLE.sub("", _KEY.sub("", line)).strip().removeprefix("- ")
        if match := _CLASS.match(line):
            class_name = f" ({match[1].rsplit('.', 1)[1]})"
        elif line and not _NOISE.match(line):
            messages.append(line)
    message = "\n".join(dict.fromkeys([m for m in messages if not _ASIDE.match(m)] or messages)) or text
    for pattern, words in _REWORDED:
        message = pattern.sub(words, message)
    return f"{'.'.join(dict.fromkeys(keys))}{class_name}: {message}" if keys else message
