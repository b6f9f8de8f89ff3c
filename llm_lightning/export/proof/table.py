"""All exports of a command as one table."""

import math
from collections.abc import Sequence
from typing import Any

COLUMNS = ("", "MB", "ids", "chats", "logits", "KL", "greedy", "perplexity", "prefill/s", "decode/s")


def table(rows: Sequence[tuple[str, int, Any]], trained: tuple[int, dict[str, Any]]) -> str:
    """One row for the model that was trained, one for each of its exports.

    Args:
        rows: name, bytes and comparison of each.
        trained: bytes, and the answers of the model's own.
    """
    size, said = trained
    first = [
        "trained", _megabytes(size), "", "", "", "", "", _number(_perplexity(rows, said), ".2f"),
        _number(said.get("prefill_tokens_per_s"), ".0f"), _number(said.get("decode_tokens_per_s"), ".1f"),
    ]  # fmt: skip
    cells = [list(COLUMNS), first, *(_cells(*row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _perplexity(rows: Sequence[tuple[str, int, Any]], said: dict[str, Any]) -> float | None:
    """Where nothing had to be asked, the exports' manifests know it."""
    if said.get("loss") is not None:
        return math.exp(min(said["loss"], 700.0))
    return next((found.trained_perplexity for _, _, found in rows), None)


def _cells(name: str, size: int, found: Any) -> list[str]:
    return [
        name,
        _megabytes(size),
        f"{found.same_ids}/{found.num_texts}",
        "-" if found.same_chats is None else f"{found.same_chats}/{found.num_chats}",
        f"{found.max_difference:.2g}",
        _number(found.kl, ".2g"),
        "-" if found.num_written is None else f"{found.same_written}/{found.num_written}",
        _number(found.perplexity, ".2f"),
        _number(found.prefill_tokens_per_s, ".0f"),
        _number(found.decode_tokens_per_s, ".1f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
