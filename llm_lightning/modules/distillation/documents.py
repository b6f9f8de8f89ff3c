"""The documents of a batch in which something is trained."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from llm_lightning.objectives.language import IGNORE_INDEX


class TrainedDocument(NamedTuple):
    """A document of a batch.

    Args:
        row: of the batch.
        number: of the document in its row.
        ids: (n,) its tokens.
        trained: (m,) which of them are, in order; m >= 1, and never the first one of a row, as nothing precedes it.
    """

    row: int
    number: int
    ids: Tensor
    trained: Tensor


def trained_documents(batch: Mapping[str, Any]) -> Iterator[TrainedDocument]:
    """Those of a batch as the DataModules yield it, on the CPU, in its order; of padded rows each is one document."""
    ids, trained = batch["input_ids"], batch["labels"] != IGNORE_INDEX
    trained[:, 0] = False
    starts = batch["position_ids"] == 0 if "position_ids" in batch else trained.new_zeros(trained.shape)
    for row in range(len(ids)):
        first, stop = 0, ids.shape[1]
        if "attention_mask" in batch and len(real := batch["attention_mask"][row].nonzero()):
            first, stop = int(real[0]), int(real[-1]) + 1
        inner = (starts[row, first + 1 : stop].nonzero().squeeze(1) + first + 1).tolist()
        for number, (start, end) in enumerate(zip([first, *inner], [*inner, stop], strict=True)):
            if len(own := trained[row, start:end].nonzero().squeeze(1)):
                yield TrainedDocument(row, number, ids[row, start:end], own)
