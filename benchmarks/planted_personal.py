"""Personal data that belongs to nobody: right in its form and its check digits, drawn at random."""

import random
from collections.abc import Callable

LETTERS = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"

LOOKALIKES = (
    "The ISBN is 978-3-16-148410-0.",
    "It ran from 1914-07-28 to 1918-11-11.",
    "Call 555-0123 or (555) 010-0199.",
    "Write to someone@example.com.",
    "Start it on 127.0.0.1 or 192.168.0.17.",
    "Pi is 3.14159265358979323846.",
    "The order 4929-1234-5678-9012 was shipped.",
    "1,234,567,890 people live there.",
    "Compute 123 - 45 - 6789 = -6711.",
    "Use @property and @dataclass.",
    "At 12:30:45:10 it rang.",
    "The id is 20241124-000123456789.",
)
"""What only looks like it: the card number has a wrong check digit."""


def personal(rng: random.Random) -> dict[str, str]:
    """One of each kind."""
    bank = _digits(rng, 18)
    return {
        "e-mail address": _email(rng),
        "phone number": rng.choice(PHONES)(rng),
        "card number": _grouped(_luhn(rng.choice("45") + _digits(rng, 14)), rng.choice(["", " ", "-"])),
        "IBAN": _grouped(f"DE{98 - int(bank + '131400') % 97:02d}{bank}", rng.choice(["", " "])),
        "social security number": f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        "IP address": rng.choice([_ipv4, _ipv6])(rng),
        "key": rng.choice(KEYS)(rng),
    }


def _email(rng: random.Random) -> str:
    names = [_letters(rng, length).lower() for length in (5, 7, 6)]
    return f"{names[0]}.{names[1]}@{names[2]}.{rng.choice(['com', 'es', 'co.uk'])}"


def _luhn(digits: str) -> str:
    """The digits with their check digit."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += sum(divmod(2 * int(digit), 10)) if place % 2 == 0 else int(digit)
    return digits + str(-total % 10)


def _ipv4(rng: random.Random) -> str:
    return ".".join(["83", *(str(rng.randint(1, 254)) for _ in range(3))])


def _ipv6(rng: random.Random) -> str:
    return f"2a02:8100:{_digits(rng, 4)}::{_digits(rng, 4)}"


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(LETTERS, k=count))


def _grouped(text: str, separator: str) -> str:
    return separator.join(text[i : i + 4] for i in range(0, len(text), 4))


PHONES: list[Callable[[random.Random], str]] = [
    lambda rng: f"(212) 3{_digits(rng, 2)}-{_digits(rng, 4)}",
    lambda rng: f"617-7{_digits(rng, 2)}-{_digits(rng, 4)}",
    lambda rng: f"+34 6{_digits(rng, 2)} {_digits(rng, 3)} {_digits(rng, 3)}",
    lambda rng: f"+44 20 7{_digits(rng, 3)} {_digits(rng, 4)}",
]
KEYS: list[Callable[[random.Random], str]] = [
    lambda rng: f"sk-proj-{_letters(rng, 40)}",
    lambda rng: f"ghp_{_letters(rng, 36)}",
    lambda rng: f"AKIA{_letters(rng, 16).upper()}",
    lambda rng: f"hf_{_letters(rng, 34)}",
]
