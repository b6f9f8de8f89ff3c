"""A list of filters, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.filters.duplicates import DuplicateFilter
from datamodules.filters.filter import DocumentFilter, Text, TextFilter, check_filters, spec_of
from datamodules.filters.funnel import Funnel


class Chain:
    """Filters in their order; those that compare documents stand last.

    Args:
        filters: at least one.

    Attributes:
        single: those that decide about a document by itself.
        comparing: those that compare documents.
    """

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self.filters = list(filters)
        self.single = [each for each in filters if isinstance(each, DocumentFilter)]
        self.comparing = [each for each in filters if isinstance(each, DuplicateFilter)]

    def check(self) -> None:
        """Raises `DataError` for wrong settings, and for an order in which documents would be compared too early."""
        check_filters(self.filters)
        order: list[TextFilter] = [*self.single, *self.comparing]
        if order != self.filters:
            late = next(each for each, right in zip(self.filters, order, strict=True) if each is not right)
            raise DataError(
                f"filters: {type(late).__name__} compares documents, and comes behind all that look at one by itself;"
                " move it to the end of the list"
            )

    def noting(self) -> list[dict[str, Any]]:
        """The specs of the filters, as far as reading documents depends on them."""
        return [spec_of(each) for each in (*self.single, *(each.noting() for each in self.comparing))]

    def specs(self) -> list[dict[str, Any]]:
        """The specs of all."""
        return [spec_of(each) for each in self.filters]

    def funnel(self) -> Funnel:
        """One for all of the filters."""
        return Funnel.of([each.name for each in self.filters])

    def passing(self, texts: Iterable[str], funnel: Funnel) -> Iterator[str]:
        """The texts with which no filter that looks at one finds a fault; the others are counted."""
        return (text for text in texts if self.passes(text, funnel))

    def passes(self, text: str, funnel: Funnel) -> bool:
        """Whether no filter that looks at one text finds a fault with it; counts it."""
        funnel.documents += 1
        funnel.characters += len(text)
        seen = Text(text)
        for each, stage in zip(self.single, funnel.stages, strict=False):
            if fault := each.fault(seen):
                stage.take(text, fault)
                return False
        return True

    @cached_property
    def dtype(self) -> np.dtype:
        """Of what is noted of a document: its characters, and what filters compare."""
        return np.dtype([("characters", "<u8"), *((sign_of(i), each.dtype) for i, each in enumerate(self.comparing))])

    def notes(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) of `dtype`."""
        notes = np.zeros(len(texts), self.dtype)
        notes["characters"] = [len(text) for text in texts]
        for number, each in enumerate(self.comparing):
            notes[sign_of(number)] = each.signs(texts)
        return notes


def sign_of(number: int) -> str:
    """The field of what a comparing filter notes."""
    return f"signs_{number}"
