"""How much the likelihood of texts depends on single weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.artifacts.random_state import generators_kept
from callbacks.network import evaluating, local


def fisher_diagonal(
    network: Any,
    parameters: Mapping[str, nn.Parameter],
    rows: Iterable[Tensor],
    forward_context: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over rows of the squared gradient of a row's summed
    log-likelihood.

    Args:
        network: A causal `transformers.PreTrainedModel`; in eval mode meanwhile. Its gradients are freed.
        parameters: By name.
        rows: Each (T,) token ids; the same ones on all ranks where these share the weights.
        forward_context: Of the run's precision.

    Returns:
        By name, of this rank's parts, in float32 at least.
    """
    parts = {name: local(parameter.detach()) for name, parameter in parameters.items()}
    total = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parts.items()}
    num_rows = 0
    with evaluating(network), generators_kept(network.device), torch.enable_grad():
        for row in rows:
            with forward_context():
                logits = network(input_ids=row[None], use_cache=False).logits[0, :-1]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = nn.functional.cross_entropy(logits, row[1:], reduction="sum")
            loss.backward()
            num_rows += 1
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    gradient = local(parameter.grad).to(total[name].dtype)
                    total[name].addcmul_(gradient, gradient)
                    parameter.grad = None
    return {name: value.div_(num_rows) for name, value in total.items()}


def pieces(texts: Iterable[str], tokenizer: Any, num_pieces: int, piece_len: int) -> Iterator[Tensor]:
    """The first so many pieces of some texts: (T,) token ids, 2 to `piece_len` of one text."""

    def every() -> Iterator[Tensor]:
        for text in texts:
            ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
            yield from (piece for piece in ids.split(piece_len) if len(piece) > 1)

    return islice(every(), num_pieces)
