"""What a pass over instruction data trained on, counted the same way however a contender lays out its batches."""

from collections.abc import Mapping

import torch
from torch import Tensor

IGNORE = -100


def count(batch: Mapping[str, Tensor]) -> Tensor:
    """(3,) float64 on the batch's device: trained tokens, tokens, and records of a batch.

    A record is a row, or in packed rows whatever begins at position 0. What has no trained token, as the padding at a
    packed row's end, is no record, and its tokens do not count.

    Args:
        batch: `labels` (B, T), not shifted; `attention_mask` (B, T) where rows are padded, `position_ids` (B, T) where
            records share a row.
    """
    labels = batch["labels"]
    positions = batch.get("position_ids")
    if positions is None:
        positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    used = batch.get("attention_mask")
    used = torch.ones_like(labels) if used is None else used
    trained = labels != IGNORE
    trained[:, 0] = False  # nothing predicts it
    record = (positions == 0).flatten().cumsum(0)
    # As long as there could be records, so that nobody waits for a GPU to learn how many there are.
    sums = torch.zeros(2, labels.numel() + 1, dtype=torch.float64, device=labels.device)
    sums[0].scatter_add_(0, record, trained.flatten().double())
    sums[1].scatter_add_(0, record, used.flatten().double())
    is_record = sums[0] > 0
    return torch.stack([sums[0].sum(), (sums[1] * is_record).sum(), is_record.sum().double()])


class Tally:
    """The sums over a pass's steps; those of the whole pass show that contenders trained on the same."""

    def __init__(self) -> None:
        self._timed: Tensor | None = None
        self._all: Tensor | None = None

    def add(self, batch: Mapping[str, Tensor], loss: Tensor, timed: bool) -> None:
        """Count a step.

        Args:
            batch: see `count`.
            loss: mean over the step's trained tokens, in nats.
            timed: whether the clock is running.
        """
        counts = count(batch)
        counts = torch.cat([counts, (counts[0] * loss.detach().to(counts)).reshape(1)])
        self._all = counts if self._all is None else self._all + counts
        if timed:
            self._timed = counts if self._timed is None else self._timed + counts

    def as_dict(self) -> dict[str, float]:
        """Of the timed steps: `trained`, `tokens`, `records`, and `loss`, the mean over their trained tokens; of the
        whole pass: `trained_in_all`, `records_in_all`.

        Raises:
            RuntimeError: no step was timed.
        """
        if self._timed is None or self._all is None:
            raise RuntimeError("no step was timed")
        trained, tokens, records, loss = self._timed.tolist()
        trained_in_all, _, records_in_all, _ = self._all.tolist()
        return {
            "trained": trained,
            "tokens": tokens,
            "records": records,
            "loss": loss / trained,
            "trained_in_all": trained_in_all,
            "records_in_all": records_in_all,
        }


class PairTally:
    """The same for preference pairs."""

    def __init__(self) -> None:
        self._timed = [0, torch.zeros((), dtype=torch.float64)]
        self._pairs_in_all = 0

    def add(self, num_pairs: int, loss: Tensor, timed: bool) -> None:
        """Count a step; `loss` is its mean over the pairs, in nats."""
        self._pairs_in_all += num_pairs
        if timed:
            pairs, total = self._timed
            self._timed = [pairs + num_pairs, total + num_pairs * loss.detach().double().cpu()]

    def as_dict(self) -> dict[str, float]:
        """Of the timed steps: `pairs`, and `loss`, the mean over them; of the whole pass: `pairs_in_all`.

        Raises:
            RuntimeError: no step was timed.
        """
        pairs, total = self._timed
        if not pairs:
            raise RuntimeError("no step was timed")
        return {"pairs": float(pairs), "loss": float(total) / pairs, "pairs_in_all": float(self._pairs_in_all)}
