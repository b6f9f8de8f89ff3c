"""Writes answers with a model that first learns from the prompt: test-time training (arXiv:2411.07279)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from llm_lightning.rollouts.adaptation import Adaptation, AdaptingNetwork
from llm_lightning.rollouts.local_engine import LocalEngine, TextRequest, WrittenText
from llm_lightning.rollouts.sampling import Sampling


class AdaptiveEngine(LocalEngine):
    """A `LocalEngine` that answers one prompt after the other, each by weights that have learned from it alone.

    Args:
        path: as in `LocalEngine`.
        adaptation: how it learns.
        options: of `LocalEngine`.
    """

    def __init__(self, path: str, adaptation: Adaptation, **options: Any) -> None:
        super().__init__(path, **options)
        adaptation.check("adaptation")
        self.adaptation = adaptation

    @cached_property
    def model(self) -> str:
        """See `LocalEngine`, and how it learns."""
        return f"{super().model}-{self.adaptation}"

    @cached_property
    def _adapting(self) -> AdaptingNetwork:
        return AdaptingNetwork(self.network, self.adaptation)

    def _write(
        self, requests: Sequence[tuple[int, TextRequest]], sampling: Sampling
    ) -> Iterator[tuple[int, WrittenText]]:
        prompts: dict[str, list[tuple[int, TextRequest]]] = {}
        for place, request in requests:
            prompts.setdefault(repr(request.messages), []).append((place, request))
        for own in prompts.values():
            ids = self._ids(list(own[0][1].messages), reply=True)
            with self._adapting.document():
                if len(ids) <= self.context_length:
                    self._adapting.read(ids[:1], ids[1:])
                yield from super()._write(own, sampling)

    def release(self) -> None:
        """See `LocalEngine`."""
        self.__dict__.pop("_adapting", None)
        super().release()
