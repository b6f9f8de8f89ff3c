"""Texts that come with the machine."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from datamodules.cache import key_of, made_folder
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
    folder = root / "corpora" / f"{name}-{version}-{key_of(python_docs.library_folder(), digest)[:12]}"

    def make(temporary: Path) -> None:
        with (temporary / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in CORPORA[name]())

    return made_folder(folder, "an embedded corpus", make) / f"{name}.jsonl"
