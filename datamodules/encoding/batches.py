"""Groups of texts to tokenize at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

ITEMS_AT_ONCE = 256
CHARACTERS_AT_ONCE = 4 << 20  # an encoding takes some 100 bytes a token: this keeps a process under a few hundred MB


def bounded_batches(items: Iterable[T], num_characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of items, bounded in number and, but for single giants, in characters."""
    batch: list[T] = []
    size = 0
    for item in items:
        length = num_characters(item)
        if batch and (len(batch) == ITEMS_AT_ONCE or size + length > CHARACTERS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch
