"""Reading text files: documents of plain text, JSON and CSV, plain or compressed."""

import re
from collections.abc import Iterator

from datamodules.sources.csv_format import CSV
from datamodules.sources.json_format import JSON, JSON_LINES
from datamodules.sources.text_files import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    byte_ranges,
    guarded,
    line_of,
    not_utf8,
    open_bytes,
)
from datamodules.sources.units import Bad, Format, Place, Record, Unit

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's, by which collections of texts in one file are parted: one document ends there, and the next begins."""

BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


def _cut(block: bytes) -> int:
    """Where in a block the previous document ends: after a blank line, else a line, else at a character."""
    if blank := BLANK_LINE.search(block):
        return blank.end()
    if (end := block.find(b"\n")) >= 0:
        return end + 1
    # UTF-8 continuation bytes are 0b10xxxxxx; at most three follow a character's first byte.
    return next((i for i in range(min(4, len(block))) if block[i] & 0xC0 != 0x80), 0)


def _txt_documents(unit: Unit) -> Iterator[tuple[Place, bytes]]:
    """(offset, bytes) of the documents that begin in the unit. Cuts depend on the offset alone, so units join up."""
    with open_bytes(unit.path) as file:
        if unit.start:
            file.seek(unit.start)
        offset = begin = unit.start
        pending: list[bytes] = []
        while block := file.read(BLOCK_BYTES):
            cut = _cut(block) if offset > 0 else 0
            if offset > unit.start:
                yield begin, b"".join([*pending, block[:cut]])
            if 0 <= unit.stop <= offset:
                return
            begin, pending = offset + cut, [block[cut:]]
            offset += len(block)
        yield begin, b"".join(pending)


def _read_txt(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    for offset, data in _txt_documents(unit):
        data = data.removeprefix(BYTE_ORDER_MARK) if offset == 0 else data
        try:
            text = data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            yield offset + error.start, not_utf8(error)
        else:
            yield from ((offset, {"text": document}) for document in _documents(text))


def _documents(text: str) -> list[str]:
    if END_OF_TEXT not in text:
        return [text]
    return [part.strip("\n") for part in text.split(END_OF_TEXT) if part.strip()]


TEXT_FORMATS = {
    "txt": Format(byte_ranges, guarded(_read_txt), line_of, columns=False),
    "jsonl": JSON_LINES,
    "json": JSON,
    "csv": CSV,
}
