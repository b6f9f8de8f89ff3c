"""Rows whose sequences take over from each other what they begin with."""

import numpy as np
import torch

from llm_lightning.models.attention import Branches, Documents
from llm_lightning.models.attention.sharing import LEAST_SHARED, SharedRow, in_sharing_order, shared_tokens

CPU = torch.device("cpu")
FEW_SHOT = np.arange(100, 100 + 2 * LEAST_SHARED)


def sequences() -> list[np.ndarray]:
    ends = [[1, 2, 3], [1, 2, 4, 5], [6], [], [7] * 20, [7] * 18 + [8]]
    return [np.concatenate([FEW_SHOT, np.array(end, np.int64)]) for end in ends] + [np.arange(5), np.arange(4)]


def test_every_sequence_is_there_at_its_positions_and_what_is_shared_is_there_once():
    row, asked = SharedRow(), sequences()
    places = {number: row.add(asked[number]) for number in in_sharing_order(asked)}
    row.pad(64)
    batch = row.batch(CPU)
    ids, positions = batch["input_ids"][0].numpy(), batch["position_ids"][0].numpy()
    for number, sequence in enumerate(asked):
        assert ids[places[number]].tolist() == sequence.tolist()
        assert positions[places[number]].tolist() == list(range(len(sequence)))
    assert isinstance(batch["documents"], Branches)
    assert (ids == FEW_SHOT[0]).sum() == 1
    assert len(ids) == row.length and row.length % 64 == 0


def test_a_row_in_which_nothing_is_shared_is_one_of_documents():
    for row in (SharedRow(), SharedRow(shares=False)):
        row.add(FEW_SHOT)
        row.add(FEW_SHOT[::-1].copy() if row._shares else FEW_SHOT)
        batch = row.batch(CPU)
        assert isinstance(batch["documents"], Documents)
        assert batch["input_ids"].shape == (1, 2 * len(FEW_SHOT))


def test_little_is_not_taken_over_unless_it_is_all():
    one, few = FEW_SHOT, FEW_SHOT[: LEAST_SHARED - 1]
    assert shared_tokens(one, few) == len(few)
    assert shared_tokens(one, np.append(few, 0)) == 0
    assert shared_tokens(one, np.append(one[:LEAST_SHARED], 0)) == LEAST_SHARED
    row = SharedRow()
    row.add(one)
    assert row.surplus(np.append(one, 0)) == 1
    assert row.surplus(one[::-1]) == len(one)
