"""The loss of networks on the same held-out pieces of text."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from llm_lightning.evaluation.likelihoods import Request, likelihoods
from llm_lightning.measuring.answers import key_of
from llm_lightning.measuring.statistics import Difference, bootstrap_interval, paired_bootstrap


class Document(Protocol):
    """A text, or a conversation with a loss on some of it."""

    @property
    def ids(self) -> np.ndarray:
        """(n,) token ids."""
        ...

    @property
    def trained(self) -> np.ndarray | None:
        """(n,) bool, which of them are in the loss; None for all."""
        ...


class Losses(NamedTuple):
    """Of one network on N pieces.

    Args:
        values: (N,) float64, mean loss of a token, in nats.
        num_tokens: (N,) tokens in it.
    """

    values: np.ndarray
    num_tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Of a token of all pieces."""
        return float(np.average(self.values, weights=self.num_tokens))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean lies, with 95 % confidence."""
        return bootstrap_interval(self.values, weights=self.num_tokens)

    def until(self, later: "Losses") -> Difference:
        """How much another network's loss on the same pieces is above this one."""
        return paired_bootstrap(self.values, later.values, weights=self.num_tokens)


class HeldOut:
    """Pieces of documents, each with its tokens in the loss.

    A document longer than `longest` is cut into several pieces, so that a single long text has many. Pieces are the
    items of the tests.

    Args:
        documents: what to read.
        longest: tokens of a piece, the network's context at most.
    """

    def __init__(self, documents: Iterable[Document], longest: int) -> None:
        self._requests: list[Request] = []
        self._piece_of: list[int] = []
        counts: list[int] = []
        for ids, trained in (piece for document in documents for piece in _pieces(document, longest)):
            requests = list(_requests(ids, trained))
            self._requests += requests
            self._piece_of += [len(counts)] * len(requests)
            if requests:
                counts.append(sum(len(request.continuation) for request in requests))
        self.num_tokens = np.array(counts)

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def key(self) -> str:
        """Names the pieces by their content."""
        return key_of(self._requests)

    def losses(self, network: Any) -> Losses:
        """What a language model loses on each piece."""
        sums = np.zeros(len(self))
        for number, found in likelihoods(network, self._requests):
            sums[self._piece_of[number]] -= found.logprob
        return Losses(sums / self.num_tokens, self.num_tokens)


def _pieces(document: Document, longest: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Token ids, and which of them are in the loss; of a piece the first one is context alone."""
    ids = document.ids.tolist()
    trained = np.ones(len(ids), bool) if document.trained is None else np.array(document.trained, bool)
    for start in range(0, len(ids) - 1, longest - 1):
        yield ids[start : start + longest], trained[start : start + longest]


def _requests(ids: list[int], trained: np.ndarray) -> Iterator[Request]:
    """Each run of tokens in the loss, behind all that is before it."""
    edges = np.diff(np.concatenate([[False], trained[1:], [False]]).astype(int))
    for begin, end in zip(np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1) + 1, strict=True):
        yield Request(ids[:begin], ids[begin:end])
