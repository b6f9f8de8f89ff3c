"""Free text without its secrets: messages, URLs, shell lines, dictionaries as text, files such as .netrc.

What stands behind the name of a secret and `:` or `=` is hidden, whatever it is. Where nothing but a space is between
them ("the password must be set"), and behind `Basic` and `Bearer`, only what is no ordinary word is.
"""

import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from llm_lightning_safety.secret_names import is_secret_name

HIDDEN = "***"
PLAIN = {"", "none", "null", "true", "false", HIDDEN}
"""What may stand under the name of a secret without being one, in lower case."""

# Of a word. Python shows the end of a line in a message as "\\n", and the next one begins right behind it.
_START = r"(?:(?<![\w.-])|(?<=\\[nrt]))"
_LOOKS = re.compile(
    r"(?:hf|gsk|npm)_[A-Za-z0-9]{20,}|(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|(AKIA|ASIA)[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|wandb_v1_\w{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
# A W&B key looks like a commit, which is worth keeping: of a revision, or in the path of the hub's cache.
_HEX = re.compile(
    r"(?P<commit>(?i:revision|commit|sha|hash|digest|snapshots|tree|blob|resolve)\w{0,20}[\"']?[\s:=/@]{1,3}[\"']?)?"
    r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
)

# Up to the last @ before the path; a password with a slash is known by not being a port. A URL that was taken for a
# path has one slash.
_URL_USER = re.compile(
    r"(\b[a-z][a-z0-9+.]{1,19}:/{1,2})((?:[^/\s?#\"']{1,2000}|[^/\s:@\"']{0,200}:(?!\d+(?:/|$))[^\s\"']{1,500}))(?=@)"
)
_URL_QUERY = re.compile(
    r"(?i)([?&;#](?:[\w.%\[\]-]{0,60}(?:token(?!s=)|key|secret|passw|pwd|signature|sig|auth|credential|code|jwt)[\w.%\[\]-]{0,60}))=[^&;#\s\"'\\]+"
)
# Possessive, from the beginning of a word on.
_ENCODED = re.compile(r"(?<![^\s\"'<>])[^\s%\"'<>]*+(?:%(?![0-9A-Fa-f]{2})[^\s%\"'<>]*+)*+%[^\s\"'<>]+")
_ENCODINGS = 3  # a URL in a URL in a URL

_WORD = re.compile(r"(?:[A-Z]?[a-z]+|[A-Z]+)(?:[-/_.'](?:[A-Z]?[a-z]+|[A-Z]+))*[.,:;!?)]*")
_VARIABLE = re.compile(r"\W*[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\W*")
_SCHEME = re.compile(rf"(?i){_START}(?P<before>(?:bearer|basic)\s+)(?P<value>[\w.~+/=-]{{6,}})")
_SPACED = re.compile(
    rf"(?i){_START}(?P<before>(?:pass(?:word|wd|phrase|code)|secret|(?P<key>(?:api|access|secret|private|auth|account)"
    r"[ _-]?(?:key|token)))\s+(?:is\s+)?(?P<quote>\\*[\"']?))(?P<value>[^\s\"'`,;<>\\]{8,})(?=(?P=quote))"
)
_NETRC = re.compile(rf"({_START}(?:machine\s+\S+|default)\s+login\s+\S+\s+(?:account\s+\S+\s+)?password\s+)[^\s\\]+")
_LOGIN = re.compile(r"((?:wandb|hf|huggingface-cli)\s+(?:auth\s+)?login(?:\s+--?[\w-]+)*\s+)(?!-)[^\s\\]{8,}")
_USER = re.compile(r"((?:(?<!\S)|(?<=\\[nrt]))(?:-u|--user)[ =]\\*[\"']?[\w.@-]+:)(?!\d+\b)[^\s\"'\\]+")
_USER_AT_HOST = re.compile(
    r"(?<![\w/.:@%-])(?P<before>(?!(?i:mailto|e?mail|to|from|cc|bcc|by|author|contact):)[\w.-]+:)"
    r"(?P<value>[^\s:/@\"']{6,})(?=@[A-Za-z0-9])"
)

_VALUE = re.compile(
    r"\\+(?P<quote>[\"']).*?\\+(?P=quote)|\"(?:\\.|[^\"\\])*\"|'(?:''|\\.|[^'\\])*'"
    # A line of YAML may end as Python shows it in a message: "\n".
    r"|[|>][+-]?(?:\n|\\+n)(?:[ \t]+(?:(?!\\+n)[^\n])*(?:\n|\\+n)?)+|(?:-[ ]+(?:(?!\\+n)[^\n])+(?:\n|\\+n)?[ \t]*)+"
    r"|(?i:bearer|basic|token|api-?key|negotiate|digest)\s+[^\s,;}\])\"'\\]+|(?:[^\s,;}\])&\"'\\]|,(?=[^\s\"']))+"
)
# Possessive, from the beginning of a word on: a long text without names must cost no more than its length.
_NAME = re.compile(
    _START + r"(?:(?P<name>(?P<words>(?i:api|access|secret|private|auth|account|client)[ ](?i:keys?|token|secret))"
    r"|[A-Za-z_][\w.-]*+)\\*+[\"']?+\s*+(?:[:=]{1,2}>?)(?:\s|\\+n)*+|(?P<flag>--?+[A-Za-z][\w.-]*+)(?:=|\s++(?!-)))"
)
# Small numbers ("pass: 3"), what a shell puts in, and the fragment behind a URL's query that was seen to before.
_NO_SECRET = re.compile(r"[\d.,e+-]{1,5}$|\$\(|\$\{|\$[A-Z_]+$|\*\*\*#")
_CLOSING = {"{": "}", "[": "]"}


def hide_secrets(text: str) -> str:
    """A text with `***` for what is secret by its look, its place or the name before it."""
    text = _LOOKS.sub(HIDDEN, text)
    text = _HEX.sub(lambda found: found[0] if found["commit"] else HIDDEN, text)
    text = _URL_QUERY.sub(rf"\1={HIDDEN}", _URL_USER.sub(rf"\1{HIDDEN}", text))
    for pattern in (_NETRC, _LOGIN, _USER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    for pattern, is_secret in ((_SCHEME, _is_no_word), (_SPACED, _is_told), (_USER_AT_HOST, _is_random)):
        text = _hide_where(pattern, is_secret, text)
    return _hide_pairs(text)


def _hide_where(pattern: re.Pattern[str], is_secret: Callable[[re.Match[str]], bool], text: str) -> str:
    return pattern.sub(lambda found: f"{found['before']}{HIDDEN}" if is_secret(found) else found[0], text)


def decoded(text: str) -> Iterator[tuple[str, str]]:
    """Each percent-encoded piece of a text, and what it stands for: a URL may hold another as a value."""
    for found in _ENCODED.finditer(text):
        plain = found[0]
        for _ in range(_ENCODINGS):
            plain = unquote(plain, errors="replace")
        yield found[0], plain


def in_urls(text: str) -> Iterator[str]:
    """The passwords and the keys of the URLs in a text, as they stand there and decoded."""
    if ":/" in text:
        values = [match[2].rpartition(":")[2] for match in _URL_USER.finditer(text)]
        values += [match[0].partition("=")[2] for match in _URL_QUERY.finditer(text)]
        yield from {*values, *map(unquote, values)}


def _is_no_word(found: re.Match[str]) -> bool:
    return not _WORD.fullmatch(found["value"])


def _is_told(found: re.Match[str]) -> bool:
    """An API key in quotes may be anything; elsewhere a word may follow."""
    return _is_random(found) or (bool(found["quote"]) and (bool(found["key"]) or _is_no_word(found)))


def _is_random(found: re.Match[str]) -> bool:
    """With letters and digits, and neither a variable of the environment nor a path."""
    value = found["value"]
    has_both = re.search(r"[A-Za-z]", value) and re.search(r"\d", value)
    return bool(has_both) and not _VARIABLE.fullmatch(value) and not re.match(r"[/~$]|\.{1,2}/|\w+://", value)


def _hide_pairs(text: str) -> str:
    """`NAME: VALUE`, `NAME=VALUE` and `--NAME VALUE`, where the name is that of a secret."""
    parts, done = [], 0
    for match in _NAME.finditer(text):
        if match.start() < done or not _names_a_secret(match):
            continue
        start = match.end()
        value = text[start : _end_of_value(text, start)]
        bare = value.strip("\\\"'")
        if bare.lower() in PLAIN or _NO_SECRET.match(bare):
            continue
        if match["words"] and _begins_a_sentence(value, text[start + len(value) :]):
            continue
        quote = value[0] if value[0] in "\"'" else ""
        parts += [text[done:start], f"{quote}{HIDDEN}{quote}"]
        done = start + len(value)
    return "".join([*parts, text[done:]])


def _names_a_secret(match: re.Match[str]) -> bool:
    name = match["name"] or match["flag"]
    begins_a_line = match.string[max(match.start() - 1, 0) : match.start()] == "\\" and name[0] in "nrt"
    return is_secret_name(name) or (begins_a_line and is_secret_name(name[1:]))


def _begins_a_sentence(value: str, rest: str) -> bool:
    """As in "There is no API key: run `login`"."""
    return _WORD.fullmatch(value) is not None and re.match(r"[ ]+[\w`'\"]", rest) is not None


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
