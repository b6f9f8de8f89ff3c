"""Batches of the size that the data will have, before any of it is read."""

from typing import Any

import torch

IGNORED = -100


def packed_rows(num_rows: int, length: int) -> dict[str, torch.Tensor]:
    """Rows of one document each, all of it trained on: as much as any text or conversation can take.

    Args:
        num_rows: B.
        length: T.
    """
    input_ids = torch.zeros(num_rows, length, dtype=torch.int64)
    input_ids[:, ::2] = 1  # else all of it would look like padding
    labels = input_ids.clone()
    labels[:, 0] = IGNORED
    return {"input_ids": input_ids, "labels": labels, "position_ids": torch.arange(length).repeat(num_rows, 1)}


def masked_rows(num_rows: int, length: int, share: float) -> dict[str, torch.Tensor]:
    """The same for masked texts, of which a share is predicted."""
    rows = packed_rows(num_rows, length)
    is_hidden = torch.arange(length) % max(1, round(1 / share)) == 0
    rows["labels"] = torch.where(is_hidden, rows["input_ids"], IGNORED)
    return rows


def pair_rows(num_rows: int, length: int) -> dict[str, torch.Tensor]:
    """Rows of one pair each, whose responses share a prompt: a third of the row each."""
    begin = torch.arange(num_rows) * length
    prompt, chosen = length // 3, 2 * length // 3
    spans = []
    for row in range(num_rows):
        spans += [[row, 0, chosen, 0, 0], [row, chosen, length, 0, prompt]]
    answers = [torch.arange(prompt, chosen), torch.arange(chosen, length)]
    places = torch.cat([b + answer for b in begin for answer in answers])
    position_ids = torch.cat([torch.arange(chosen), torch.arange(prompt, prompt + length - chosen)])
    none = torch.full((num_rows,), float("nan"))
    return {
        "input_ids": torch.zeros(num_rows, length, dtype=torch.int64),
        "position_ids": position_ids.repeat(num_rows, 1),
        "spans": torch.tensor(spans),
        "target_positions": places - 1,
        "targets": torch.zeros_like(places),
        "num_targets": torch.tensor([len(answer) for answer in answers]).repeat(num_rows),
        "chosen_ends": begin + chosen - 1,
        "rejected_ends": begin + length - 1,
        "chosen_lengths": torch.full((num_rows,), chosen - prompt),
        "rejected_lengths": torch.full((num_rows,), length - chosen),
        "ties": torch.zeros(num_rows, dtype=torch.bool),
        "margins": torch.ones(num_rows),
        "chosen_scores": none,
        "rejected_scores": none,
        "numbers": torch.arange(num_rows),
    }


def rows_like(datamodule: Any) -> dict[str, Any] | None:
    """A micro-batch as a DataModule will serve it; None where that cannot be known."""
    size, length = getattr(datamodule, "batch_size", None), getattr(datamodule, "seq_len", None)
    if size is None or length is None:
        return None
    match getattr(datamodule, "batch_kind", None):
        case "texts" | "conversations":
            return packed_rows(size, length)
        case "masked texts":
            return masked_rows(size, length, datamodule.masking.probability)
        case "preference pairs":
            return pair_rows(size, length)
    return None
