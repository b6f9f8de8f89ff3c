"""Which of a solution's numbers is its answer."""

# ruff: noqa: RUF001 (signs that look like others are what this is about)

import re

from llm_lightning.rewards.numbers import CURRENCY, DecimalMark, Number, numbers, plain

MARK = "####"
"""Stands before the final answer in GSM8K's solutions."""

BEGINS_WITH_NUMBER = re.compile(rf"[\s({{\[~≈]*(?:[-+] ?)?(?:{CURRENCY} ?)?(?:[-+] ?)?(?:\.?\d|\\)")
WORD = re.compile(r"(?<!\\)(?<![^\W\d_])[^\W\d_]{2,}")

EXPRESSION = re.compile(r"\\[A-Za-z]|[√π∞±∓∪∩<>≤≥≠|]|\b(?:sqrt|pi|log|ln|sin|cos|tan|mod)\b")
"""Signs that an answer is more than a plain number, wherever in it they stand."""

GOES_ON = re.compile(
    r"\s*(?:[-+*/÷^]\s*[\d(.\\]|[+*^]\s*[A-Za-z]|-\s?[a-z]\b|[xyzni]\b|!|\(\d"  # 18-20, 5+x, 5x, 5!, 2(3)
    r"|\d|[,;]\s*[-+]?[$€£]?\.?\d|(?:and|or|to|y|o|u|e|a|hasta)\s+[-+]?[$€£]?\.?\d)"  # 2, 3 and 2 or 3
)
"""What makes of a number the beginning of an expression, or of several answers."""

BOX_OR_BRACE = re.compile(r"\\boxed\s*(?:\{|(?P<bare>[^\s{}]+))|(?<!\\)[{}]")
PAIR = re.compile(r"\s*(?:\(|\[|\\\{)[^()\[\]{}]*,")


def final_number(text: str, decimal_mark: DecimalMark | None = None) -> Number | None:
    """The number that a solution arrives at; None where there is none, or something else than one plain number.

    It is the one in the last `\\boxed{}` or behind the last `####`, whichever comes later, else the last of the text.

    Args:
        text: a solution, or the bare answer.
        decimal_mark: see `read_digits`.
    """
    answer, is_alone = _answer(text)
    if is_alone:
        return _only_number(re.split(r"=|≈|\\approx", answer)[-1], decimal_mark)
    found = list(numbers(plain(answer), decimal_mark))
    return found[-1].number if found else None


def _answer(text: str) -> tuple[str, bool]:
    """Where the answer is looked for, and whether nothing but the answer stands there."""
    box, mark = _last_box(text), text.rfind(MARK)
    if box is not None and text.rfind("\\boxed") > mark:
        return box, True
    if mark >= 0:
        behind = text[mark + len(MARK) :].strip()
        line = behind.partition("\n")[0]
        # `#### 72` is an answer, `#### The answer` a heading, and the number stands somewhere behind it.
        return (line, True) if BEGINS_WITH_NUMBER.match(plain(line)) or "=" in line else (behind, False)
    stripped = text.strip()
    return text, "\n" not in stripped and WORD.search(re.sub(r"\\text\{[^{}]*\}", "", stripped)) is None


def _last_box(text: str) -> str | None:
    """What is in the last box that is in no other; of one that is not closed, nothing. None: there is no box."""
    content: str | None = None
    open_braces: list[tuple[bool, int]] = []
    for match in BOX_OR_BRACE.finditer(text):
        if match["bare"]:
            content = match["bare"] if not any(is_box for is_box, _ in open_braces) else content
        elif match[0].endswith("{"):
            open_braces.append((match[0] != "{", match.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            if is_box and not any(outer for outer, _ in open_braces):
                content = text[start : match.start()]
    return "" if any(is_box for is_box, _ in open_braces) else content


def _only_number(answer: str, decimal_mark: DecimalMark | None) -> Number | None:
    answer = plain(answer)
    found = next(numbers(answer, decimal_mark, is_answer=True), None)
    if found is None or EXPRESSION.search(answer) or PAIR.match(answer):
        return None
    if re.search(r"[-+*/÷^]\s*[({]*\s*\Z", answer[: found.start]) or GOES_ON.match(answer, found.end):
        return None
    return found.number
