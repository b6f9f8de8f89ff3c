"""A tiny Llama in a plain LightningModule: what the callbacks' contracts ask for, and no more."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, SEQ_LEN, BATCH_SIZE = 128, 16, 2


def tiny_network() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(c): c for c in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class TinyModule(LightningModule):
    def __init__(self, learning_rate: float = 1e-2) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.model: Any = None
        self.tokenizer = tiny_tokenizer()
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if self.model is None:
            self.model = tiny_network()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        tokens = (self.trainer.global_step + 1) * batch["input_ids"].numel() * self.trainer.world_size
        self.log_dict({"train/loss": loss, "train/lr": self.learning_rate, "tokens": float(tokens)})
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        loss = self.model(**batch).loss + torch.rand(1).item() * 0
        self.log_dict({"val/loss": loss, "val/perplexity": loss.exp(), "val/bits_per_byte": loss / 2}, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def save_model(self, folder: Path) -> None:
        if self.trainer.is_global_zero:
            self.model.save_pretrained(folder)


class Rows(Dataset):
    """The row of an index: the same in every process."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        input_ids = torch.randint(3, VOCABULARY, (SEQ_LEN,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": input_ids, "labels": input_ids, "position_ids": torch.arange(SEQ_LEN)}


class ResumableLoader(DataLoader):
    """Goes on behind the batches that were trained on, by Lightning's protocol for stateful loaders."""

    consumed = 0

    def __iter__(self) -> Any:
        skipped, self.consumed = self.consumed, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= skipped:
                self.consumed = i + 1
                yield batch
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.consumed = state_dict["consumed"]


class TinyData(LightningDataModule):
    def __init__(self, num_rows: int = 400, num_workers: int = 0, worker_init_fn: Any = None) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.num_workers = num_workers
        self.worker_init_fn = worker_init_fn

    def train_dataloader(self) -> DataLoader:
        return ResumableLoader(
            Rows(self.num_rows),
            batch_size=BATCH_SIZE,
            num_workers=self.num_workers,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(4), batch_size=BATCH_SIZE)


def tiny_trainer(root: Path, **settings: Any) -> Trainer:
    defaults = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "max_steps": 10,
        "check_val_every_n_epoch": None,
        "val_check_interval": 5,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "use_distributed_sampler": False,
    }
    return Trainer(**(defaults | settings))
