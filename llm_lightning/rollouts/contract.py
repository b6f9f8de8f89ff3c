"""What training asks of whatever writes its completions: this project's own sampler, or a server such as vLLM."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from llm_lightning.rollouts.sampling import Key, Sampling


class Completion(NamedTuple):
    """What was written to a prompt.

    Args:
        tokens: (n,) int64 on the CPU, n >= 1, its EOS included where there is one.
        logprobs: (n,) float32 on the CPU: of each token, at the temperature, before top-k and top-p; not a number where
            the engine cannot tell.
        is_finished: whether it ends with an EOS token, and not for its length.
    """

    tokens: Tensor
    logprobs: Tensor
    is_finished: bool


@runtime_checkable
class RolloutEngine(Protocol):
    """Writes completions with the weights that the policy has now.

    One that computes with them in another way than the trainer says so by an attribute `is_inexact` that is true: its
    tokens are then weighed. One with a method `check(tokenizer)` is told the policy's tokenizer before any long work.
    """

    def sample(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> list[Completion]:
        """The completions of each prompt, one prompt's after the other's.

        Every rank calls it, with prompts of its own; where weights are sharded they may be gathered for it.

        Args:
            model: a `PreTrainedModel` with a language head, or a `PeftModel` around one; left as it was found.
            prompts: token ids, (n,) int64 each, without padding.
            keys: for each prompt those of its completions, equally many for all. The same key, prompt and weights give
                the same completion, whatever else is written beside it.
        """
        ...


@runtime_checkable
class AsynchronousEngine(RolloutEngine, Protocol):
    """One that can write while the policy is trained."""

    def begin(
        self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]
    ) -> Callable[[], list[Completion]]:
        """Take the weights as they are now, and return what writes with them: `sample`, for another thread.

        Every rank calls it, with the arguments of `sample`. What it returns calls no other rank, and is done before
        the engine is asked for anything else.
        """
        ...


EngineCallable: TypeAlias = Callable[[Sampling, Sequence[int], int], RolloutEngine]
"""Makes an engine, once the policy is known, from how tokens are drawn, the tokens that end a completion, and how many
completions are written at the same time."""
