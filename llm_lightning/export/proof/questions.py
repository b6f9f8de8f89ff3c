"""What both models are asked."""
# ruff: noqa: RUF001 (letters that look like others are what is asked for)

import unicodedata
from pathlib import Path
from typing import Any

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces before,\ttabs,\n\n\nempty lines, and spaces at the end   ",
    "In 1984 it cost $1,234.56 (about 0.5 %), i.e. 3.14e-10 of 123456789012345678901234567890.",
    "I'd say they're the CEO's; we'll've seen. DON'T SHOUT, IT'S RUDE!",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2}  # ok != True\n",
    "Größe, façade, naïve, Ærøskøbing, Łódź, İstanbul, ſtraße",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "我能吞下玻璃而不伤身体。いろはにほへと ちりぬるを。키스의 고유조건은 입술끼리 만나야 한다",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ½ ℵ₀ ∮ E⋅da = Q, \u200b\ufeff 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)
"""Fixed: several scripts, spaces, digits, contractions, code, and what lies beyond 16 bits."""

DECOMPOSED = unicodedata.normalize("NFD", "Ünïcödé decomposed: é, Å, 각")
"""Asked too, unless the target says that it cannot normalize."""

CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 2?"}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "  Où est la tour Eiffel ?\n"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Sure?"},
    ],
)

DEFAULT_TEXT = Path(__file__).with_name("held_out.txt")
"""A few pages written for this purpose, so that no model was trained on them."""

NUM_NEW = 64
LAST = 4
"""Positions of each prompt whose logits are compared."""

WINDOW = 512
MOST_SPECIAL = 64
"""Special tokens that are asked: a tokenizer with more of them has reserved ones by the hundreds."""


def special_texts(tokenizer: Any) -> list[str]:
    """A text for each special token, within words and by itself."""
    tokens = dict.fromkeys(
        [*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values())]
    )
    return [f"{token}a {token} b{token}{token}" for token in list(tokens)[:MOST_SPECIAL]]


def questions(tokenizer: Any, text: str, text_tokens: int, is_reward_model: bool) -> dict[str, Any]:
    """Of everything that does not depend on where the model lies."""
    return {
        "texts": [*TEXTS, DECOMPOSED, *special_texts(tokenizer)],
        "chats": list(CHATS),
        "text": text,
        "text_tokens": text_tokens,
        "window": WINDOW,
        "last": LAST,
        "num_new": NUM_NEW,
        "is_reward_model": is_reward_model,
        "has_template": bool(tokenizer.chat_template),
    }
