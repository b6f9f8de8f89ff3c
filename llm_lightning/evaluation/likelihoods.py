"""How likely a network finds continuations of contexts: no padding, and what texts share is computed once a row.

Requests are sorted by their tokens, so that each stands behind the one it shares most with; it takes over that
beginning (the few-shot examples, the question) and adds its own tokens. Options of one token are nothing but several
columns of the same logits.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_lightning.models.adapters.virtual_tokens import prompt_config
from llm_lightning.models.attention import ATTENTION, attention_of
from llm_lightning.models.attention.sharing import SharedRow, in_sharing_order
from llm_lightning.models.heads import base_model, head_scaling, hidden_states, output_head
from llm_lightning.models.loading.sharding import all_gathered, is_gathered_to_run, run_gathered
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.models.running.evaluating import evaluating
from llm_lightning.objectives.chunks import ROUNDING, chunk_length
from llm_lightning.rollouts.adaptation import AdaptingNetwork

ROW_TOKENS = 8192
"""Of one forward pass, but for a single longer request."""


class Request(NamedTuple):
    """What is asked: token ids of a context, at least one, and of its continuation, at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """The continuation's log-probability, and whether each of its tokens is the likeliest at its place."""

    logprob: float
    is_greedy: bool


@torch.no_grad()
def likelihoods(
    model: Any, requests: Sequence[Request], row_tokens: int = ROW_TOKENS
) -> Iterator[tuple[int, Likelihood]]:
    """Each request's number and likelihood, as they are done.

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one; left as it was found.
        requests: that fit into the network's context.
        row_tokens: of one forward pass; the results do not depend on it but for rounding.
    """
    network = base_model(model)
    plan = Plan(requests, row_tokens, shares=_shares(model))
    if not is_gathered_to_run(network):
        yield from _all_likelihoods(model, plan)
        return
    # Ranks have different numbers of rows: parts that lie on others are fetched once, and no rank waits after that.
    yield from run_gathered(network, lambda: list(_all_likelihoods(model, plan)))


def _all_likelihoods(model: Any, plan: "Plan") -> Iterator[tuple[int, Likelihood]]:
    network = base_model(model)
    with evaluating(network), all_gathered(network):
        for row in plan.rows():
            yield from zip(row.numbers, _row_likelihoods(model, row), strict=True)


def read_text(adapting: AdaptingNetwork, windows: Sequence[Request]) -> float:
    """The log-probability of a text from which the network learns while it reads it.

    Args:
        adapting: the network.
        windows: of the text, in its order, each no longer than the network's context.
    """
    total = 0.0
    with adapting.document():
        for number, window in enumerate(windows, 1):
            before, tokens = (torch.tensor(list(ids), dtype=torch.int64) for ids in window)
            total += float(adapting.read(before, tokens, learn=number < len(windows)).double().sum())
    return total


class Row(NamedTuple):
    """Requests in one row.

    Args:
        numbers: of the requests.
        tokens: the row.
        places: (M,) int64 where the M tokens of all continuations are predicted, request after request.
        targets: (M,) int64 these tokens.
        counts: tokens of each request's continuation.
    """

    numbers: list[int]
    tokens: SharedRow
    places: np.ndarray
    targets: np.ndarray
    counts: list[int]


class Plan:
    """Which requests stand in which row.

    Args:
        requests: what is asked.
        row_tokens: of a row, but for a single longer request.
        shares: whether sequences may take over a beginning; else all stand for themselves.
    """

    def __init__(self, requests: Sequence[Request], row_tokens: int, shares: bool) -> None:
        # The last token predicts nothing that is asked for.
        self._read = [np.array([*r.context, *r.continuation[:-1]], np.int64) for r in requests]
        self._asked = requests
        self._row_tokens, self._shares = row_tokens, shares
        self._order = in_sharing_order(self._read)

    def rows(self) -> Iterator[Row]:
        """The rows, one after the other."""
        row = _RowBeingFilled(self._shares)
        for number in self._order:
            ids = self._read[number]
            if row.tokens.length and row.tokens.length + row.tokens.surplus(ids) > self._row_tokens:
                yield row.finished()
                row = _RowBeingFilled(self._shares)
            row.add(number, ids, self._asked[number])
        if row.numbers:
            yield row.finished()


class _RowBeingFilled:
    def __init__(self, shares: bool) -> None:
        self.tokens = SharedRow(shares)
        self.numbers: list[int] = []
        self.places: list[np.ndarray] = []
        self.targets: list[Sequence[int]] = []

    def add(self, number: int, ids: np.ndarray, asked: Request) -> None:
        """Put a request behind the others."""
        self.numbers.append(number)
        self.places.append(self.tokens.add(ids)[len(asked.context) - 1 :])
        self.targets.append(asked.continuation)

    def finished(self) -> Row:
        """The row, padded to a round length."""
        self.tokens.pad(ROUNDING)
        return Row(
            self.numbers,
            self.tokens,
            np.concatenate(self.places),
            np.concatenate([np.asarray(target, np.int64) for target in self.targets]),
            [len(target) for target in self.targets],
        )


def _shares(model: Any) -> bool:
    """Whether the network's attention can be told what a sequence takes over."""
    network = base_model(model)
    behaviour = behaviour_of(network)
    return behaviour.packs and attention_of(network) == ATTENTION and prompt_config(model) is None


def _row_likelihoods(model: Any, row: Row) -> list[Likelihood]:
    network = base_model(model)
    states = hidden_states(model, row.tokens.batch(network.device))[0]
    logprobs, is_likeliest = _read_off(network, states, row)
    parts = zip(logprobs.split(row.counts), is_likeliest.split(row.counts), strict=True)
    return [Likelihood(float(logprob.sum()), bool(likeliest.all())) for logprob, likeliest in parts]


def _read_off(network: Any, states: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """(M,) float32 log-probabilities of the row's targets and whether they are the likeliest, on the CPU."""
    head, scaling = output_head(network), head_scaling(network)
    vocab_size = network.config.get_text_config(decoder=True).vocab_size
    step = chunk_length(vocab_size, states.device)
    # A place that several requests ask goes through the head once.
    places, which = np.unique(row.places, return_inverse=True)
    order = which.argsort(kind="stable")
    bounds = np.searchsorted(which[order], np.arange(0, len(places) + step, step))
    logprobs, is_likeliest = torch.empty(len(which)), torch.empty(len(which), dtype=torch.bool)
    for chunk in range(-(-len(places) // step)):
        asked = order[bounds[chunk] : bounds[chunk + 1]]
        index = torch.from_numpy(places[chunk * step : (chunk + 1) * step]).to(states.device)
        scores = scaling(head(states.index_select(0, index))).float().log_softmax(-1)
        rows = torch.from_numpy(which[asked] - chunk * step).to(states.device)
        targets = torch.from_numpy(row.targets[asked]).to(states.device)
        logprobs[asked] = scores[rows, targets].cpu()
        is_likeliest[asked] = (scores.argmax(-1)[rows] == targets).cpu()
    return logprobs, is_likeliest
