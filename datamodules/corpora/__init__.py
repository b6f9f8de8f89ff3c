"""Texts that come with the machine."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from datamodules.cache import atomic_file, key_of
from datamodules.corpora import python_docs

CORPORA: dict[str, Callable[[], Iterator[str]]] = {"python_docs": python_docs.documents}


def corpus_file(name: str, root: Path) -> Path:
    """An embedded corpus as a file of JSON lines in the cache, so that it is read like any other file.

    It is named by the running Python and by the code that reads it: another version of either makes another file.
    """
    code = hashlib.blake2b(Path(python_docs.__file__).read_bytes(), digest_size=16).hexdigest()
    version = platform.python_version()
    path = root / "corpora" / f"{name}-{version}-{key_of(python_docs.library_folder(), code)[:12]}.jsonl"
    if not path.exists():
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in CORPORA[name]())
    return path
