"""The nearest orthogonal matrices, near enough for an optimizer."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that Muon was published with: five steps bring singular values from 0.01 on to between 0.7 and 1.2."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """What the iteration runs in: bfloat16 is enough for it, but on a CPU it is slower than float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def newton_schulz(matrices: Tensor, num_steps: int) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1 (zeros stay zeros).

    Args:
        matrices: (..., rows, columns); each is a matrix of its own.
        num_steps: of the iteration.

    Returns:
        A tensor of the same shape and dtype.
    """
    shape = matrices.shape
    x = matrices.flatten(end_dim=-3) if matrices.ndim > 2 else matrices[None]
    if is_tall := shape[-2] > shape[-1]:
        x = x.mT  # the products are as large as the smaller side
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(shape)
