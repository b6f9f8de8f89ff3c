"""Personal data and secrets that a model may have learned by heart."""

import ipaddress
import re
from collections.abc import Iterator

from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

EMAIL = re.compile(r"\b[\w.+-]{1,64}@((?:[\w-]{1,63}\.){1,8}[a-z]{2,24})\b", re.IGNORECASE)
PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # international
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}"  # North American
    r")(?![\w-])"
)
CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d{2,6}){2,4}(?![\w-])")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?\b")
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)")
IPV6 = re.compile(r"(?<![\w:.])(?:[\da-f]{1,4}:){2,7}(?::?[\da-f]{1,4}){1,7}(?![\w:])", re.IGNORECASE)
KEY = re.compile(
    r"\bsk-(?:[a-z]+-)*[\w-]{20,}"  # OpenAI, Anthropic and their like
    r"|\bgh[pousr]_[A-Za-z\d]{36}\b|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20}"
    r"|\bhf_[A-Za-z]{30,}\b|\bA(?:KIA|SIA)[A-Z\d]{16}\b|\bAIza[\w-]{35}"
    r"|\bxox[abprs]-[\w-]{10,}|\b[sr]k_live_[A-Za-z\d]{16,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
KEY_MARKS = (
    "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "hf_", "AKIA", "ASIA", "AIza", "xox",
    "k_live_", "eyJ", "PRIVATE KEY",
)  # fmt: skip
"""One of these is in every key: spares most records the search."""
LONG_NUMBER = re.compile(r"\d[\d ().:-]{5,}\d")  # all but IPv6 addresses have one: spares most records six searches
NOBODYS = (
    "example", "example.com", "example.org", "example.net", "test", "invalid", "localhost", "domain.com", "email.com",
)  # fmt: skip
"""Domains of examples: those of RFC 2606, and what models write in their place."""


class PersonalData(Filter):
    """Drops records with e-mail or IP addresses, phone, card or social security numbers, IBANs, or keys.

    Card numbers and IBANs count where their check digits are right, IP addresses where they are public, and domains of
    examples do not count. Patterns find what has a form; names and postal addresses have none and are not found.

    The score is the number of findings.
    """

    name = "personal_data"

    def __init__(self) -> None:
        super().__init__(Threshold(max=0))

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how many findings."""
        for batch in batches:
            found = [findings(candidate.text) for candidate in batch]
            yield Scores.of((len(kinds), kinds[0] if kinds else "") for kinds in found)


def findings(text: str) -> list[str]:
    """The kinds of what is found, one for each finding."""
    kinds = []
    if "@" in text:
        kinds += ["e-mail address" for match in EMAIL.finditer(text) if _is_somebodys(match[1].lower())]
    if LONG_NUMBER.search(text):
        for iban in [match[0] for match in IBAN.finditer(text) if _is_iban(match[0])]:
            kinds.append("IBAN")
            text = text.replace(iban, "", 1)  # or its digits might look like a card's
        kinds += ["card number" for match in CARD.finditer(text) if _is_card(match[0])]
        kinds += ["social security number" for _ in SSN.finditer(text)]
        kinds += ["phone number" for match in PHONE.finditer(text) if _is_phone(match[0])]
        kinds += ["IP address" for match in IPV4.finditer(text) if _is_public(match[0])]
    if "::" in text or text.count(":") > 6:
        kinds += ["IP address" for match in IPV6.finditer(text) if _is_public(match[0])]
    if any(map(text.__contains__, KEY_MARKS)):
        kinds += ["key" for _ in KEY.finditer(text)]
    return kinds


def _is_somebodys(domain: str) -> bool:
    return not any(domain == other or domain.endswith(f".{other}") for other in NOBODYS)


def _digits(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdigit()]


def _is_card(text: str) -> bool:
    """Luhn's check, ISO/IEC 7812."""
    digits = _digits(text)[::-1]
    total = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return 13 <= len(digits) <= 19 and total % 10 == 0


def _is_iban(text: str) -> bool:
    """The check digits of ISO 13616."""
    text = text.replace(" ", "")
    return 15 <= len(text) <= 34 and int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    digits = _digits(text)
    fictional = len(digits) in (10, 11) and [5, 5, 5] in (digits[-10:-7], digits[-7:-4])  # in North America
    return 7 < len(digits) < 16 and len(set(digits)) > 2 and not fictional


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # Four small numbers are a version or a section.
    return address.is_global and (address.version == 6 or max(address.packed) > 31)
