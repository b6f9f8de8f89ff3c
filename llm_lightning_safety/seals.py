"""Whether what is read back is what was written: lengths and checksums (CRC-32) that the writer notes.

They tell of disks, not of people: who can change a file can change its checksum too.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from llm_lightning_safety.files import write_text

SEAL = "seal.json"
"""What a sealed folder holds beside its files."""
KEY = "crc32"
AT_ONCE = 2**20  # bytes


def checksum(data: bytes) -> str:
    """Eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def sealed_line(line: bytes) -> bytes:
    """A line with its checksum before it."""
    return f"{checksum(line)} ".encode() + line


def unsealed_line(line: bytes) -> bytes | None:
    """What `sealed_line` was given; None for any other line."""
    seal, _, text = line.partition(b" ")
    return text if seal == checksum(text).encode() else None


def sealed(value: dict[str, Any]) -> str:
    """A dictionary as JSON that holds a checksum of itself; its keys are texts."""
    return json.dumps(value | {KEY: checksum(json.dumps(value).encode())})


def unsealed(text: str | bytes) -> Any:
    """The value of such JSON, and of JSON that was written before there were checksums.

    Raises:
        ValueError: it is no JSON, or not what was written.
    """
    value = json.loads(text)
    if isinstance(value, dict) and value.pop(KEY, None) not in (None, checksum(json.dumps(value).encode())):
        raise ValueError("its checksum does not fit")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Puts `sealed` JSON in the place of a file."""
    write_text(path, sealed(value))


def read_json(path: Path) -> Any:
    """What `write_json` wrote; raises `OSError` where it is missing, `ValueError` where it is damaged."""
    return unsealed(path.read_bytes())


def note_of(file: Path) -> list[Any]:
    """A file's length in bytes and its checksum, which takes a second for some GB."""
    total = 0
    with file.open("rb", buffering=0) as opened:
        while data := opened.read(AT_ONCE):
            total = zlib.crc32(data, total)
        return [opened.tell(), f"{total:08x}"]


def seal_folder(folder: Path) -> None:
    """Notes length and checksum of each file in a folder that is written to its end."""
    write_json(folder / SEAL, {file.name: note_of(file) for file in sorted(folder.iterdir())})


def is_whole(folder: Path, closely: bool = True) -> bool:
    """Whether all files of a sealed folder are there and as they were.

    Args:
        folder: what may be one.
        closely: compare checksums, and not lengths alone.
    """
    try:
        notes = read_json(folder / SEAL)
        return all(
            (folder / name).stat().st_size == note[0] and (not closely or note_of(folder / name) == note)
            for name, note in notes.items()
        )
    except (OSError, ValueError):
        return False
