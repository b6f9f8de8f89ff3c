"""Instructions that a program can check, as in IFEval (arXiv:2311.07911), by the names that its data uses."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.rewards.scoring import Columns, Prompt

Check = Callable[[str, Mapping[str, Any]], bool]


@dataclass
class InstructionsFollowed:
    """Share of a prompt's instructions that the completion follows.

    Args:
        ids: column with the list of a prompt's instructions, such as `punctuation:no_comma`.
        arguments: column with the list of their arguments, a mapping each.
        strict: 1 where all are followed, else 0.
        skip: instructions that are not looked at, for data with some that there is no check for.
    """

    ids: str = "instruction_id_list"
    arguments: str = "kwargs"
    strict: bool = False
    skip: Sequence[str] = ()

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        for name in (self.ids, self.arguments):
            if name not in columns:
                raise UserError(f"InstructionsFollowed needs the column {name!r}; there are: {', '.join(columns)}.")
        rewards = []
        for text, ids, arguments in zip(completions, columns[self.ids], columns[self.arguments], strict=True):
            wanted = [(_check(name), a or {}) for name, a in zip(ids, arguments, strict=True) if name not in self.skip]
            followed = [bool(text.strip()) and check(text, a) for check, a in wanted]
            share = sum(followed) / len(followed) if followed else 1.0
            rewards.append(float(share == 1) if self.strict else share)
        return rewards

    def check_record(self, columns: Mapping[str, Any]) -> str | None:
        """See `RecordCheck`: each check is tried on a word."""
        for name in (self.ids, self.arguments):
            if not isinstance(columns.get(name), list):
                return f"InstructionsFollowed needs the column {name!r} with a list, not {columns.get(name)!r}"
        ids, arguments = columns[self.ids], columns[self.arguments]
        if len(ids) != len(arguments):
            return f"InstructionsFollowed: {self.ids} has {len(ids)} entries, {self.arguments} has {len(arguments)}"
        for name, given in zip(ids, arguments, strict=True):
            if name in self.skip:
                continue
            try:
                _check(name)("word", given or {})
            except UserError as error:
                return str(error)
            except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
                return f"InstructionsFollowed: {name} with {given!r}: {type(error).__name__}: {error}"
        return None


def _check(name: str) -> Check:
    if name not in CHECKS:
        raise UserError(
            f"InstructionsFollowed: there is no check for {name!r}; there are: {', '.join(CHECKS)}. "
            "Leave the others out by `skip`."
        )
    return CHECKS[name]


def _compared(count: int, arguments: Mapping[str, Any], wanted: str) -> bool:
    """IFEval's relations: `less than` excludes the number, `at least` includes it."""
    limit = arguments[wanted]
    return count < limit if arguments.get("relation") == "less than" else count >= limit


def _count_word(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _num_words(text: str, arguments: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(r"\w+", text)), arguments, "num_words")


def _num_sentences(text: str, arguments: Mapping[str, Any]) -> bool:
    sentences = [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if re.search(r"\w", part)]
    return _compared(len(sentences), arguments, "num_sentences")


def _num_paragraphs(text: str, arguments: Mapping[str, Any]) -> bool:
    parts = [part for part in re.split(r"\s?\*\*\*\s?", text) if part.strip()]
    return len(parts) == arguments["num_paragraphs"]


def _capital_words(text: str, arguments: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\w+", text))
    return _compared(count, {**arguments, "relation": arguments["capital_relation"]}, "capital_frequency")


def _letters(text: str, arguments: Mapping[str, Any]) -> bool:
    count = text.lower().count(arguments["letter"].lower())
    return _compared(count, {**arguments, "relation": arguments["let_relation"]}, "let_frequency")


def _sections(text: str, arguments: Mapping[str, Any]) -> bool:
    return len(re.findall(rf"\s?{re.escape(arguments['section_spliter'])}\s?\d+\s?", text)) >= arguments["num_sections"]


def _is_json(text: str, _: Mapping[str, Any]) -> bool:
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _constrained(text: str, _: Mapping[str, Any]) -> bool:
    return any(f"my answer is {word}." in text.lower() for word in ("yes", "no", "maybe"))


def _first_word(text: str, arguments: Mapping[str, Any]) -> bool:
    """Of the n-th paragraph, and how many there are."""
    parts = [part for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != arguments["num_paragraphs"] or len(parts) < arguments["nth_paragraph"]:
        return False
    words = re.findall(r"\w+", parts[arguments["nth_paragraph"] - 1])
    return bool(words) and words[0].lower() == arguments["first_word"].lower()


def _two_responses(text: str, _: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats_prompt(text: str, arguments: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(arguments["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, arguments: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


CHECKS: dict[str, Check] = {
    "keywords:existence": lambda t, a: all(_count_word(t, word) for word in a["keywords"]),
    "keywords:forbidden_words": lambda t, a: not any(_count_word(t, word) for word in a["forbidden_words"]),
    "keywords:frequency": lambda t, a: _compared(_count_word(t, a["keyword"]), a, "frequency"),
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _num_words,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:postscript": lambda t, a: a["postscript_marker"].lower() in t.lower(),
    "detectable_content:number_placeholders": lambda t, a: len(re.findall(r"\[.*?\]", t)) >= a["num_placeholders"],
    "detectable_format:number_bullet_lists": lambda t, a: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S.*$", t, re.MULTILINE)) == a["num_bullets"]
    ),
    "detectable_format:number_highlighted_sections": lambda t, a: (
        len(re.findall(r"\*{1,2}[^\n*]+\*{1,2}", t)) >= a["num_highlights"]
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:title": lambda t, a: re.search(r"<<[^\n]*\w[^\n]*>>", t) is not None,
    "detectable_format:json_format": _is_json,
    "detectable_format:constrained_response": _constrained,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": lambda t, a: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    "change_case:english_lowercase": lambda t, a: t == t.lower(),
    "change_case:english_capital": lambda t, a: t == t.upper(),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": lambda t, a: "," not in t,
}
