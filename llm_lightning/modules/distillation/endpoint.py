"""A teacher behind an endpoint: what a server finds likely of given tokens, for the cache that training reads.

Token ids are sent, and not texts: there is no second tokenizer, and what comes back belongs to the tokens that are
trained. That the server's ids mean the same tokens is compared by what it calls them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.modules.distillation.context import Context
from llm_lightning.modules.distillation.documents import trained_documents
from llm_lightning.modules.distillation.teacher_cache import Shape
from llm_lightning.objectives.distillation import TeacherChunk

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""Part of what a token is called that is no whole character."""


# A type variable and `Any` where the classes are another package's: to jsonargparse these fit all.
Told = TypeVar("Told", covariant=True)


class Endpoint(Protocol[Told]):
    """Says how likely tokens are in given texts: `datamodules.OpenAIEngine`, or a class of your own."""

    @property
    def model(self) -> str:
        """Names the model; another one, another cache."""
        ...

    def token_logprobs(self, prompts: Any, top_k: int) -> Iterator[tuple[int, Told]]:
        """Of prompts, sequences of token ids, the place among them, and for each token but the first what may stand
        there: by token id a log-probability and what the endpoint calls it, the K likeliest and the one that is there.
        """
        ...

    def check(self) -> Any:
        """Find a user's mistakes before any long work; nothing is called."""
        ...

    def settings(self) -> dict[str, Any]:
        """What is written into reports, without secrets; its `url` is in the cache's name."""
        ...

    def release(self) -> Any:
        """Close the connections."""
        ...


def likeliest_by_endpoint(
    endpoint: Endpoint, batch: Mapping[str, Any], context: Context | None, tokenizer: Any, shape: Shape
) -> TeacherChunk:
    """The K likeliest of each trained token of a batch, (N, K), in the batch's order.

    Args:
        endpoint: is asked about each document that has trained tokens.
        batch: as the DataModules yield it.
        context: what stands before each document; None: nothing.
        tokenizer: of the data.
        shape: has K and the number of tokens.

    Raises:
        UserError: the endpoint has another vocabulary, or names fewer tokens.
    """
    prompts, places = list[Tensor](), list[Tensor]()
    for _, _, ids, trained in trained_documents(batch):
        own, before = (ids, trained - 1) if context is None else context.in_front_of(ids, trained)
        prompts.append(own if context is None else torch.cat([context.tokens, own]))
        places.append(before + (0 if context is None else len(context.tokens)))
    top_k = shape.top_k
    told: dict[int, list[Any]] = dict(endpoint.token_logprobs([prompt.tolist() for prompt in prompts], top_k))
    if len(told) < len(prompts):
        raise UserError(
            f"model.endpoint: {len(prompts) - len(told)} calls to {endpoint.model} came to nothing. What was computed "
            "is kept: the same command goes on."
        )
    logprobs, ids = torch.zeros(sum(map(len, places)), top_k), torch.zeros(sum(map(len, places)), top_k).long()
    row = 0
    for number, (prompt, where) in enumerate(zip(prompts, places, strict=True)):
        for place in where.tolist():
            known = told[number][place]
            _check(known, int(prompt[place + 1]), tokenizer, shape, endpoint.model)
            best = sorted(known.items(), key=lambda one: -one[1][0])[:top_k]
            ids[row] = torch.tensor([token for token, _ in best])
            logprobs[row] = torch.tensor([value for _, (value, _) in best]).clamp(max=0)
            row += 1
    return TeacherChunk(logprobs, ids)


def _check(known: Mapping[int, Any], token: int, tokenizer: Any, shape: Shape, model: str) -> None:
    if len(known) < shape.top_k:
        raise UserError(
            f"model.top_k={shape.top_k}: the endpoint names {len(known)} tokens at a place; lower it, or let the "
            "server name more (vLLM: --max-logprobs)."
        )
    if token not in known or max(known) >= shape.vocab_size:
        raise UserError(f"model.endpoint: {model} knows other tokens than the data's tokenizer, such as {max(known)}.")
    ours, theirs = tokenizer.decode([token]), known[token][1]
    if UNREADABLE not in ours + theirs and ours.strip() != theirs.strip():
        raise UserError(
            f"model.endpoint: {model} has another vocabulary: its token {token} is {theirs!r}, the data's is {ours!r}."
        )
