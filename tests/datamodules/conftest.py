import json
import random
import string
from pathlib import Path

import pytest

SPANISH = "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo."
EMOJI = "Corazón 🫀, bandera 🇪🇸 y familia 👨‍👩‍👧: 日本語も。"


@pytest.fixture
def texts() -> list[str]:
    """240 different documents, of a few words up to some thousand characters."""
    rng = random.Random(0)
    words = [*SPANISH.split(), *EMOJI.split(), *string.ascii_lowercase]
    return [f"Document {i}. " + " ".join(rng.choices(words, k=rng.randint(1, 400))) for i in range(240)]


@pytest.fixture
def write_jsonl(tmp_path: Path):
    def write(texts: list[str], name: str = "data.jsonl", column: str = "text") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts)))
        return str(path)

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
