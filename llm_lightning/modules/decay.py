"""Which parameters weight decay pulls to zero, and which are the matrices of the blocks."""

from typing import Any

from torch import nn

UNDECAYED = ("adaption_prompt", "adaption_gate", ".ia3_l.", ".lora_E.", ".trainable_tokens_delta.")
"""Parts of the names of adapter weights that are vectors, prompts or rows of embeddings, whatever their shape."""


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, and norms, biases, embeddings and prompts, which must not decay."""
    matrices, others = _matrices_and_others(model)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trainable matrices of the blocks, and the stacked ones of their experts; not those of embeddings and heads.

    Blocks are what is in a `ModuleList`, as transformers writes all of its networks.
    """
    blocks = [block for block in model.modules() if isinstance(block, nn.ModuleList)]
    inner = {id(parameter) for block in blocks for parameter in block.parameters()}
    return [matrix for matrix in _matrices_and_others(model)[0] if id(matrix) in inner and matrix.ndim in (2, 3)]


def _matrices_and_others(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            is_matrix = is_matrix and not any(part in name for part in UNDECAYED)
            (matrices if is_matrix else others).append(parameter)
    return matrices, others
