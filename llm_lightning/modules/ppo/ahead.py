"""Completions of the next step, written while this one is learned from: one step off-policy (arXiv:2410.18252).

They are by the weights that this step began with. The update weighs each token by how much likelier the policy finds it
by now (see `importance_weights`), as it does where a server wrote them.

What is written already is in the checkpoint, for no later weights could write it again. So a resumed run learns from
the same completions, and from every prompt once.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning.rollouts import Completion


class RolloutAhead:
    """What is being written to the prompts of the next step; one thing at a time."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._prompts: list[Tensor] = []
        self._future: Future[list[Completion]] | None = None

    def begin(self, write: Callable[[], list[Completion]], prompts: Sequence[Tensor], device_type: str) -> None:
        """Let another thread write.

        Args:
            write: gives equally many completions to each prompt.
            prompts: this rank's, (n,) token ids each.
            device_type: whose autocast, which belongs to a thread, is the same there as here.
        """
        enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

        def work() -> list[Completion]:
            with torch.autocast(device_type, dtype, enabled=enabled):
                return write()

        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._prompts, self._future = list(prompts), self._executor.submit(work)

    def take(self, prompts: Sequence[Tensor], first: int) -> list[Completion] | None:
        """The completions to these prompts; None where others were written to, or nothing was.

        Args:
            prompts: this rank's.
            first: those of the ranks before it.

        Raises:
            Exception: what ended the writing.
        """
        if self._future is None:
            return None
        completions, theirs = self._future.result(), self._prompts
        self._future, self._prompts = None, []
        if len(theirs) > len(prompts):  # a checkpoint has those of all ranks
            num_samples, own = len(completions) // len(theirs), slice(first, first + len(prompts))
            completions = completions[first * num_samples : own.stop * num_samples]
            theirs = theirs[own]
        same = len(theirs) == len(prompts) and all(map(torch.equal, theirs, prompts))
        return completions if same else None

    def wait(self) -> None:
        """Until nothing is being written any more."""
        if self._future is not None:
            self._future.exception()

    def state_dict(self) -> dict[str, Any]:
        """All ranks' prompts and completions, in the order of the ranks; every rank calls it."""
        self.wait()
        failed = self._future is None or self._future.exception() is not None
        completions = [] if failed else self._future.result()  # type: ignore[union-attr]
        own = _flat([] if failed else self._prompts, completions)
        ranks = EvaluationRanks().gather(own)
        return {name: torch.cat([each[name] for each in ranks]) for name in own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Have what a checkpoint has."""
        lengths = state["prompt_lengths"].tolist(), state["lengths"].tolist()
        self._prompts = list(state["prompts"].long().split(lengths[0]))
        parts = (state[name].split(lengths[1]) for name in ("tokens", "logprobs"))
        completions = zip(*parts, state["is_finished"].tolist(), strict=True)
        self._future = Future()
        self._future.set_result([Completion(tokens.long(), probs, end) for tokens, probs, end in completions])


def _flat(prompts: Sequence[Tensor], completions: Sequence[Completion]) -> dict[str, Tensor]:
    ids, probs = torch.zeros(0, dtype=torch.int32), torch.zeros(0)
    return {
        "prompts": torch.cat([ids, *(prompt.int() for prompt in prompts)]),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64),
        "tokens": torch.cat([ids, *(one.tokens.int() for one in completions)]),
        "logprobs": torch.cat([probs, *(one.logprobs for one in completions)]),
        "lengths": torch.tensor([len(one.tokens) for one in completions], dtype=torch.int64),
        "is_finished": torch.tensor([one.is_finished for one in completions], dtype=torch.bool),
    }
