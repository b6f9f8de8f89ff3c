"""Texts that come with the machine."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from datamodules.cache import atomic_file, key_of
from datamodules.corpora import python_docs, python_pairs, python_preferences

CORPORA: dict[str, Callable[[], Iterator[dict[str, str]]]] = {
    "python_docs": python_docs.records,
    "python_pairs": python_pairs.records,
    "python_preferences": python_preferences.records,
}


def corpus_file(name: str, root: Path) -> Path:
    """An embedded corpus as a file of JSON lines in the cache, so that it is read like any other file.

    It is named by the running Python and by the code that reads it: another version of either makes another file.
    """
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.blake2b(code, digest_size=16).hexdigest()
    version = platform.python_version()
    path = root / "corpora" / f"{name}-{version}-{key_of(python_docs.library_folder(), digest)[:12]}.jsonl"
    if not path.exists():
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in CORPORA[name]())
    return path
