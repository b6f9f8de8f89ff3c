"""Causal attention over packed rows that does no work across documents, and needs no padding and no dense mask.

A row of a packed batch holds several documents one after the other; a token may attend to its own document alone. A
dense (T, T) mask computes every pair and throws most away. Here each document is one causal flash call on CPU, and the
whole batch is one variable-length call on CUDA. The function is registered with transformers' attention interface
under `ATTENTION`, so that every architecture that goes through the interface has it.

The documents of a batch are found once, on the CPU, before the batch goes to its device (`Documents.of`), and travel
through the network's keyword arguments; the network never waits for the device to learn where a document ends.
"""

from llm_lightning.models.attention.branches import Branch, Branches
from llm_lightning.models.attention.choice import attention_of, with_attention
from llm_lightning.models.attention.documents import Documents
from llm_lightning.models.attention.interface import ATTENTION, PACKED, Prefix, document_attention, register_attention

__all__ = [
    "ATTENTION", "PACKED", "Branch", "Branches", "Documents", "Prefix", "attention_of", "document_attention",
    "register_attention", "with_attention",
]  # fmt: skip
