"""Token ids that are ready and in a fixed order, so that all contenders train on the same."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer


class Rows(Dataset):
    """Rows (N, T) of a .npy file as `input_ids` and unshifted `labels` (T,); a row is one document."""

    def __init__(self, path: Path | str) -> None:
        self.rows = torch.from_numpy(np.load(path)).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = self.rows[index].clone()
        labels[0] = -100  # nothing predicts the first token
        return {"input_ids": self.rows[index], "labels": labels}


class PackedRows(Rows):
    """With `position_ids` (T,), as every DataModule for packed rows yields them."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return item | {"position_ids": torch.arange(len(item["input_ids"]))}


class FixedRows(LightningDataModule):
    """Batches of rows in the order of the file.

    Args:
        path: .npy file of token ids (N, T).
        batch_size: rows a step.
        tokenizer: folder of the one that made the ids; the command line fills in the network's.
    """

    def __init__(self, path: str, batch_size: int, tokenizer: str | None = None) -> None:
        super().__init__()
        self.path, self.batch_size = path, batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else None

    def train_dataloader(self) -> DataLoader:
        return DataLoader(PackedRows(self.path), batch_size=self.batch_size)
