"""What training asks of whatever writes its answers: this project's own sampler, or a server such as vLLM."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

Key: TypeAlias = tuple[int, ...]
"""Names the random numbers of one answer. The same key, prompt and weights give the same answer, whatever else is
written beside it; so an answer depends on neither the number of ranks nor the size of a batch, and a resumed run needs
no generator's state."""


class Completion(NamedTuple):
    """One answer.

    Args:
        tokens: (n,) int64 on the CPU, n >= 1, its EOS included where there is one.
        logprobs: (n,) float32 on the CPU: of each token, at the temperature, before top-k and top-p.
        is_finished: whether it ends with an EOS token, and not for its length.
    """

    tokens: Tensor
    logprobs: Tensor
    is_finished: bool


class RolloutEngine(Protocol):
    """Writes answers with the weights that the policy has now."""

    def __call__(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> list[Completion]:
        """The answers to each prompt, one prompt's after the other's.

        Args:
            model: a `PreTrainedModel` with a language head, or a `PeftModel` around one; left as it was found.
            prompts: token ids, (n,) int64 each, without padding.
            keys: for each prompt those of its answers, equally many for all.
        """
        ...
