"""SparseGPT: which weights go, and what the others have to become for it (arXiv:2301.00774)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from callbacks.errors import CallbackError
from callbacks.pruning.criteria import Scope, Wanda

Choose = Callable[[Tensor, slice], Tensor]
"""Of scores (out, n) of some columns, which of them go, as bools of the same shape."""


class SparseGPT(Wanda):
    """The least that pruning a layer can change of its outputs: weights that stay make good for those that go.

    Goes block by block and within a block layer by layer, all at once, so that each layer is judged by what the pruned
    ones before it give. A column after the other is pruned, what it leaves undone is given to the columns after it
    (arXiv:2301.00774), and at last the weights that stayed are moved further towards the least squared change of the
    layer's outputs (conjugate gradients, as in ALPS, arXiv:2406.07831), for which columns have to be known that
    SparseGPT passes once. Holds the token ids of its batches, the hidden states of these, and of one layer X^T X, a
    matrix of its inputs by its inputs, in float32.

    Args:
        num_batches: as many of the last micro-batches of each rank calibrate. 16 rows of 512 tokens are enough for a
            network of 135M.
        block_size: columns, whose mask is chosen together where the structure leaves that open; the paper's 128.
        damping: share of the mean of X^T X's diagonal that is added to it; the paper's 0.01. Where the matrix is still
            not positive, ten times as much.
        refinements: steps of the conjugate gradients; 0 is SparseGPT alone.

    Raises:
        CallbackError: a setting that leaves nothing to do.
    """

    compares: Scope = "matrix"

    def __init__(
        self, num_batches: int = 16, block_size: int = 128, damping: float = 0.01, refinements: int = 20
    ) -> None:
        super().__init__()
        if num_batches < 1 or block_size < 1:
            raise CallbackError(f"SparseGPT: num_batches={num_batches} and block_size={block_size} must be 1 or more.")
        if damping <= 0 or refinements < 0:
            raise CallbackError(f"SparseGPT: damping={damping} must be above 0, refinements={refinements} not below.")
        self.num_batches, self.block_size = num_batches, block_size
        self.damping, self.refinements = damping, refinements
        self.batches: list[dict[str, Any]] = []

    def keep(self, batch: Any) -> None:
        """Calibrate on this micro-batch, too.

        Raises:
            CallbackError: it is no text whose tokens are predicted, or cannot be kept as tensors alone.
        """
        if "input_ids" not in batch or "labels" not in batch:
            raise CallbackError(
                "Pruning.criterion=SparseGPT calibrates on texts whose tokens are predicted, and these batches are "
                "others: prune in pretraining, fine-tuning or distillation, or take the criterion Wanda."
            )
        plain = {name: value.cpu() for name, value in batch.items() if isinstance(value, Tensor)}
        self.batches = [*self.batches, plain][-self.num_batches :]

    def solve(self, weight: Tensor, products: Tensor, choose: Choose, width: int) -> tuple[Tensor, Tensor]:
        """New weights (out, in), and which of them are kept.

        Args:
            weight: (out, in).
            products: (in, in), X^T X over the inputs X.
            choose: which of some columns go.
            width: columns that are chosen together.
        """
        damped = _damped(products, self.damping)
        pruned, kept = prune_columns(weight, damped, choose, width, max(self.block_size // width, 1) * width)
        return refine(pruned, weight, damped, kept, self.refinements), kept

    def state_dict(self) -> dict[str, Any]:
        """As for Wanda, and the batches of each rank; every rank calls it."""
        parts: list[Any] = [self.batches]
        if dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.batches)
        return {"norms": super().state_dict(), "batches": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over, also those of a run on another number of ranks."""
        super().load_state_dict(state["norms"])
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.batches = [batch for part in state["batches"][rank::size] for batch in part]


def _damped(products: Tensor, damping: float) -> Tensor:
    """Positive definite, whatever the inputs were."""
    products = products.clone()
    diagonal = products.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that is always 0, whose weights do nothing
    mean = float(diagonal.mean())
    while True:
        diagonal += damping * mean
        if not int(torch.linalg.cholesky_ex(products)[1]):
            return products
        damping *= 10


def prune_columns(
    weight: Tensor, products: Tensor, choose: Choose, width: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """SparseGPT's pass over the columns: new weights (out, in), and which of them are kept.

    Args:
        weight: (out, in).
        products: (in, in), positive definite.
        choose: which of some columns go, by what each weight's removal costs.
        width: columns that are chosen together.
        block_size: columns after which the columns behind are brought up to date; a multiple of `width`. That is for
            speed alone.
    """
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(products)), upper=True)
    weight, num_columns = weight.clone(), weight.shape[1]
    kept = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, num_columns, block_size):
        block = slice(start, min(start + block_size, num_columns))
        factors, part = inverse[block, block], weight[:, block]
        undone = torch.zeros_like(part)
        for i in range(part.shape[1]):
            if i % width == 0:
                chosen = slice(i, i + width)
                costs = part[:, chosen].square() / factors.diagonal()[chosen].square()
                columns = slice(start + i, start + i + costs.shape[1])
                kept[:, columns] = ~choose(costs, columns)
            left = torch.where(kept[:, start + i], 0.0, part[:, i]) / factors[i, i]
            part[:, i:] -= left[:, None] * factors[i, i:]
            undone[:, i] = left
        weight[:, block.stop :] -= undone @ inverse[block, block.stop :]
    return weight * kept, kept


def refine(weight: Tensor, dense: Tensor, products: Tensor, kept: Tensor, steps: int) -> Tensor:
    """Weights (out, in) whose outputs are nearer to the dense ones', by conjugate gradients on those that are kept.

    Minimises trace((W - D) P (W - D)^T) over the W that are 0 where nothing is kept; each row by itself, with P's
    diagonal as preconditioner.

    Args:
        weight: where to begin.
        dense: D.
        products: P, (in, in), positive definite.
        kept: bools.
        steps: of the gradients.
    """
    weight, scale = weight.clone(), products.diagonal()
    residual = ((dense - weight) @ products) * kept
    direction = residual / scale
    strength = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ products) * kept
        length = strength / (direction * image).sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        weight += length * direction
        residual -= length * image
        scaled = residual / scale
        stronger = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + stronger / strength.clamp(min=torch.finfo(weight.dtype).tiny) * direction
        strength = stronger
    return weight
