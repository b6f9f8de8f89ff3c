"""Plain numbers as people and models write them, in English and Spanish, in text, Markdown and LaTeX."""

# ruff: noqa: RUF001 (signs that look like others are what this is about)

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

DecimalMark = Literal[".", ","]

MOST_DIGITS = 400
"""Of a number, and its largest power of ten: who writes 1e999999999 must not get all of the memory."""

CURRENCY = (
    r"(?:(?:US|MX|R|C|A|NZ|HK|S)?[$€£¥₹₩₡₱₽₺₫]|S/\.?"
    r"|(?:USD|EUR|GBP|JPY|CNY|INR|MXN|ARS|COP|CLP|PEN|BRL|CAD|AUD|CHF|Rs\.?)(?![A-Za-z]))"
)
SCALES = {
    "hundred": 2, "thousand": 3, "mil millones": 9, "mil": 3, "million": 6, "millón": 6, "millon": 6, "millones": 6,
    "billion": 9, "billón": 12, "billon": 12, "billones": 12, "trillion": 12,
}  # fmt: skip
SHORT_SCALES = {"k": 3, "K": 3, "M": 6, "B": 9, "bn": 9}
"""Behind an amount of money alone: 5 k may be kelvin."""

RUN = r"(?:\d{1,3}(?:[ '_]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|(?<![\d.,])\.\d+)"
TOKEN = re.compile(
    rf"""
      (?P<other>\d+(?:/\d+){{2,}} | \d+-\d+-\d+ | \d+(?::\d+)+ | 0[xX][0-9a-fA-F]+)  # dates, times, ratios, hex
    | (?P<sign>[-+][ ]{{0,3}})? (?P<money>{CURRENCY}[ ]?)? (?P<inner>[-+][ ]{{0,3}})?
      (?: (?P<whole>\d+)[ ]+(?P<top>\d+)/(?P<bottom>\d+)
        | (?P<numerator>{RUN})[ ]?/[ ]?(?P<denominator>{RUN})
        | (?P<run>{RUN}) (?:\^(?P<power>[-+]?\d+))?
          (?:[eE](?P<e>[-+]?\d+)(?![\w]) | [ ]{{0,2}}[*x][ ]{{0,2}}10\^(?P<ten>[-+]?\d+))? )
      (?:[ ]?(?P<short>bn|[kKMB])(?!\w) | [ ]{{1,2}}(?P<scale>{"|".join(SCALES).replace(" ", "[ ]")})\b)?
      (?P<percent>[ ]?(?:%|per[ ]?cent\b|por[ ]cien(?:to)?\b))?
    """,
    re.VERBOSE,
)
GLUED = re.compile(r"(?:[A-Za-zÀ-ɏͰ-Ͽ_^]|[_^]\{)\Z")
"""Before a number that is part of a name, an index or a unit. Chinese and its kin write numbers behind letters."""

BEFORE_MINUS = re.compile(r"(?:[=:≈({\[$]|\b(?:is|are|equals|es|son))\Z")
ROOT = re.compile(r"(?:√|sqrt)\s*[({]?\s*\Z")

STYLE = (
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|boxed|fbox|operatorname|boldsymbol|bm|num|SI|qty|unit)"
    r"\s*(?=\{)"
)

CHARACTERS = str.maketrans(
    dict.fromkeys("−–﹣－‐‑", "-") | dict.fromkeys("\u00a0\u202f\u2009\u2007\u2008\t", " ")
    | {"⁄": "/", "∕": "/", "×": "*", "·": "*", "⋅": "*", "’": "'", "＋": "+", "，": ",", "．": ".", "％": "%"}
    | {"＄": "$", "٫": ".", "٬": ","}
)  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


def _over(top: str, bottom: str) -> str:
    """A fraction with its sign in front."""
    sign = "-" if top.startswith("-") != bottom.startswith("-") else ""
    return f"{sign}{top.lstrip('-')}/{bottom.lstrip('-')}"


REWRITTEN = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\([$%#&])", r"\1"),
        (r"\\(?:text)?dollar(?![a-z])", "$"),
        (r"\\(?:text)?euro(?![a-z])", "€"),
        (r"\\(?:pounds|textsterling)(?![a-z])", "£"),
        (r"\\(?:left|right|[dt]frac(?=\s*[\d{])|cfrac)(?![a-z])", lambda m: r"\frac" if "frac" in m[0] else ""),
        (r"(?<=\d)\s*(?=\\frac)", " "),
        (r"\\frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))",
         lambda m: _over(m[1] or m[2], m[3] or m[4])),
        (r"(?<=\d)(?:\{([.,])\}|([.,])\\!)(?=\d)", lambda m: m[1] or m[2]),
        (r"\\!", ""),
        (r"\\(?:[,;: ]|q?quad(?![a-z]))|(?<=\d)~(?=\d)", " "),
        (r"\\text\s*\{\s*-\s*\}", "-"),
        (rf"{STYLE}\{{([^{{}}]*)\}}", lambda m: re.sub(r"^(?=[^\W\d])|(?<=[^\W\d])$", " ", m[1])),
        (STYLE, " "),
        (r"\\(?:times|cdot)(?![a-z])", "*"),
        (r"\^\s*\{?\s*\\circ(?![a-z])\s*\}?|\\degree(?![a-z])", "°"),
        (r"\\[()\[\]]", " "),
        (r"(?<=\d)\*\*(?=[-\d])", "^"),
        (r"\*\*|__", " "),
        (r"(?<![\w)}%])(?<![\w)}%] )\*(?=[-+$€£\d])", ""),
        (r"[⁰¹²³⁴-⁹⁻⁺]+", lambda m: "^" + m[0].translate(SUPERSCRIPTS)),
        (r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1"),
        (r"(?<=\d)\s?([¼-¾⅐-⅞])", r" \1"),
        (r"[¼-¾⅐-⅞]", lambda m: unicodedata.normalize("NFKC", m[0]).replace("⁄", "/")),
        (r"((?:^|[=:]|\b(?:is|are|equals|es|son))\s*)(?:minus|negative|menos) (?=[$€£]?\d)", r"\1-"),
    )
)  # fmt: skip


class Number(NamedTuple):
    """A number, exactly.

    Args:
        values: what it is; of one that can be read in two ways both, the likelier first.
        is_percent: whether a percent sign follows.
    """

    values: tuple[Fraction, ...]
    is_percent: bool = False

    def matches(self, right: "Number") -> bool:
        """Whether this is the right number. Where one of the two alone has a percent sign, 50% is 50 and 0.5."""
        wanted = {right.values[0]}
        if self.is_percent != right.is_percent:
            wanted.add(right.values[0] * 100 if self.is_percent else right.values[0] / 100)
        return not wanted.isdisjoint(self.values)


class Found(NamedTuple):
    """Where a number stands in a text, and which it is; None for a date, a time, a root and the like."""

    start: int
    end: int
    number: Number | None


def plain(text: str) -> str:
    """The text with one way of writing for each sign; what LaTeX says of a plain number in plain characters."""
    text = text.translate(CHARACTERS)
    for pattern, by in REWRITTEN:
        text = pattern.sub(by, text)
    return text


def numbers(text: str, decimal_mark: DecimalMark | None = None, *, is_answer: bool = False) -> Iterator[Found]:
    """The numbers of a text that is `plain`, but for those in a name, a unit or an index (GPT-4, m^2, x_1).

    Args:
        text: from `plain`.
        decimal_mark: see `read_digits`.
        is_answer: whether there is no list in it: then `- 5` at its beginning is a number, and not a point of a list.
    """
    for match in TOKEN.finditer(text):
        start = match.start()
        before = text[max(0, start - 12) : start]
        if GLUED.search(before):
            continue
        if match["other"] or ROOT.search(before):
            yield Found(start, match.end(), None)
        else:
            yield Found(start, match.end(), _number(match, _is_negative(match, before, is_answer), decimal_mark))


def read_digits(run: str, decimal_mark: DecimalMark | None = None) -> tuple[Fraction, ...]:
    """What digits with separators say: 1,234.5 and 1.234,5 and 1 234,5 are the same; nothing for 1,2,3 and 1.2.3.

    Args:
        run: digits, and between them dots, commas, blanks, apostrophes or low lines.
        decimal_mark: what parts decimals from the whole in a number that does not tell. None: 1,234 is above a
            thousand, as English has it; 1.234 may be both, as Spanish writes a thousand so.
    """
    if len(run) > MOST_DIGITS:
        return ()
    joined = re.sub("[ '_]", "", run)
    marks = re.findall("[.,]", joined)
    if not marks:
        return (Fraction(int(joined)),)
    whole, part = joined.rsplit(marks[-1], 1)
    decimals = Fraction(int(re.sub("[.,]", "", joined)), 10 ** len(part))
    if joined != run:
        return (decimals,)
    if len(set(marks)) == 2:
        return (decimals,) if marks.count(marks[-1]) == 1 and _is_grouped(whole, marks[0]) else ()
    if not _is_grouped(joined, marks[0]):
        return (decimals,) if len(marks) == 1 else ()
    thousands = Fraction(int(re.sub("[.,]", "", joined)))
    if len(marks) > 1:
        return (thousands,)
    if decimal_mark is not None:
        return (decimals if marks[0] == decimal_mark else thousands,)
    return (thousands,) if marks[0] == "," else (decimals, thousands)


def _is_grouped(digits: str, mark: str) -> bool:
    """In threes, or as in India (1,00,000)."""
    first, *others = digits.split(mark)
    if not 1 <= len(first) <= 3 or first.startswith("0"):
        return False
    if all(len(other) == 3 for other in others):
        return True
    return mark == "," and len(first) < 3 and len(others[-1]) == 3 and all(len(other) == 2 for other in others[:-1])


def _number(match: re.Match[str], is_negative: bool, decimal_mark: DecimalMark | None) -> Number | None:
    values = _values(match, decimal_mark)
    tens = sum(int(match[name] or 0) for name in ("e", "ten") if len(match[name] or "") < 6)
    if match["scale"] or match["money"]:
        tens += SCALES.get(match["scale"], 0) + SHORT_SCALES.get(match["short"], 0)
    is_bounded = abs(tens) <= MOST_DIGITS and all(len(match[name] or "") < 6 for name in ("e", "ten"))
    if not values or not is_bounded:
        return None
    factor = (-1 if is_negative else 1) * Fraction(10) ** tens
    return Number(tuple(value * factor for value in values), match["percent"] is not None)


def _values(match: re.Match[str], decimal_mark: DecimalMark | None) -> tuple[Fraction, ...]:
    if match["run"]:
        values = read_digits(match["run"], decimal_mark)
        return values if match["power"] is None else _powers(values, match["power"])
    if match["whole"]:
        whole, top, bottom = ((read_digits(match[name]) or (Fraction(0),))[0] for name in ("whole", "top", "bottom"))
        return (whole + top / bottom,) if bottom else ()
    over, under = (read_digits(match[name], decimal_mark)[:1] for name in ("numerator", "denominator"))
    return (over[0] / under[0],) if over and under and under[0] else ()


def _powers(bases: tuple[Fraction, ...], power: str) -> tuple[Fraction, ...]:
    if len(power) > 4 or any(len(str(base)) * abs(int(power)) > 4 * MOST_DIGITS for base in bases):
        return ()
    return tuple(base ** int(power) for base in bases if base or int(power) > 0)


def _is_negative(match: re.Match[str], before: str, is_answer: bool) -> bool:
    if "-" in (match["inner"] or ""):
        return True
    sign = match["sign"] or ""
    if not sign.startswith("-"):
        return False
    if not sign.endswith(" "):
        return not re.search(r"[\d)%]\Z", before)  # 20-18, 18-20
    # A blank behind it: a minus behind `=` and the like, else a dash or a point of a list.
    former = before.rstrip(" ")
    return bool(BEFORE_MINUS.search(former)) if former else is_answer
