"""What one rollout leaves for its updates."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llm_lightning.models.completions import PackedCompletions, bounded_groups, pack_completions
from llm_lightning.rollouts import Completion


@dataclass
class Experience:
    """B completions of at most R tokens; tensors (B, R) are padded on the right and lie on the device.

    Args:
        prompts: token ids of each completion's prompt, on the CPU.
        completions: the completions.
        scores: (B,) weighted sum of the rewards.
        is_off_policy: whether another program drew the tokens, or earlier weights, so that they have to be weighed.
        mask: (B, R) bool, true on real tokens.
        logprobs, ref_logprobs: of the policy that wrote, and of the reference (zeros without one).
        entropies: of the policy that wrote.
        values: of the critic (zeros without one).
        advantages, returns: what the updates learn from.
    """

    prompts: list[Tensor]
    completions: list[Completion]
    scores: Tensor
    is_off_policy: bool = False
    mask: Tensor = field(init=False)
    logprobs: Tensor = field(init=False)
    ref_logprobs: Tensor = field(init=False)
    entropies: Tensor = field(init=False)
    values: Tensor = field(init=False)
    advantages: Tensor = field(init=False)
    returns: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.scores.device
        lengths = torch.tensor([len(c.tokens) for c in self.completions], device=device)
        self.mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        zeros = torch.zeros(self.mask.shape, dtype=torch.float32, device=device)  # under bf16-true too
        self.logprobs, self.ref_logprobs, self.entropies, self.values = (zeros.clone() for _ in range(4))
        self.advantages, self.returns = zeros.clone(), zeros.clone()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and its completion together."""
        return [len(p) + len(c.tokens) for p, c in zip(self.prompts, self.completions, strict=True)]

    @property
    def is_finished(self) -> Tensor:
        """(B,) bool: whether the completion ends with an EOS token."""
        return torch.tensor([c.is_finished for c in self.completions], device=self.scores.device)

    def plan(
        self, epochs: int, num_minibatches: int, rank: int, num_ranks: int, generator: np.random.Generator
    ) -> list[list[int]]:
        """This rank's rows of each minibatch of all epochs; see `minibatches`."""
        count = len(self.prompts)
        return [rows for _ in range(epochs) for rows in minibatches(count, num_minibatches, rank, num_ranks, generator)]

    def groups(self, rows: Sequence[int], most_tokens: int, at_least: int = 1) -> list[list[int]]:
        """These rows in micro-batches of at most so many tokens, and at least so many micro-batches."""
        lengths = self.lengths
        groups = [[rows[i] for i in group] for group in bounded_groups([lengths[row] for row in rows], most_tokens)]
        while len(groups) < min(at_least, len(rows)):
            largest = max(range(len(groups)), key=lambda i: len(groups[i]))
            half = len(groups[largest]) // 2
            groups[largest : largest + 1] = [groups[largest][:half], groups[largest][half:]]
        return groups

    def packed(self, rows: Sequence[int]) -> PackedCompletions:
        """These rows for a forward pass; its results are in the order of `tensor[rows][mask[rows]]`."""
        completions = [self.completions[row].tokens for row in rows]
        return pack_completions([self.prompts[row] for row in rows], completions, self.scores.device)

    def put(self, rows: Sequence[int], **flat: Tensor) -> None:
        """Write (M,) results of a forward pass over these rows to the tensors of these names."""
        for name, values in flat.items():
            getattr(self, name)[rows] = self.spread(rows, values)

    def spread(self, rows: Sequence[int], flat: Tensor) -> Tensor:
        """(len(rows), R) from (M,) results of a forward pass over these rows."""
        mask = self.mask[rows]
        return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

    def take(self, rows: Sequence[int], *names: str) -> list[Tensor]:
        """(M,) of the tensors of these names: real tokens alone."""
        mask = self.mask[rows]
        return [getattr(self, name)[rows][mask] for name in names]

    @property
    def sampler_logprobs(self) -> Tensor:
        """(B, R) as whoever sampled the completions gives them."""
        flat = torch.cat([completion.logprobs for completion in self.completions])
        return self.spread(range(len(self.completions)), flat.to(self.scores.device))


def minibatches(
    count: int, num_minibatches: int, rank: int, num_ranks: int, generator: np.random.Generator
) -> list[list[int]]:
    """This rank's rows of each minibatch.

    Of every `num_minibatches` rows that follow each other, each goes to another minibatch, at random. So all ranks have
    equally many rows in each, and which rows make a minibatch does not depend on the number of ranks.

    Args:
        count: rows of this rank, a multiple of `num_minibatches`.
        num_minibatches: how many.
        rank, num_ranks: this rank's rows follow those of the ranks before it.
        generator: in the same state on all ranks.
    """
    blocks = np.tile(np.arange(num_minibatches), (num_ranks * count // num_minibatches, 1))
    turns = generator.permuted(blocks, axis=1).ravel()[rank * count : (rank + 1) * count]
    return [np.flatnonzero(turns == number).tolist() for number in range(num_minibatches)]
