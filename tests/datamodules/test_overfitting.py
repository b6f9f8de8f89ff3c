"""`trainer.overfit_batches` with prompts; rows of tokens are in test_resume.py."""

import json
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch

from datamodules import PromptDataModule
from datamodules.encoding.tokenizer import train


class Asked(pl.LightningModule):
    """Notes the prompts of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["prompts"])
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def asked(tmp_path):
    """What three epochs ask, by batches."""
    train(iter(["what is 1 plus 2? three"] * 9), vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    records = [json.dumps({"prompt": "what is 1 plus " * (i % 5) + str(i)}) for i in range(60)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(records))

    def fit(**settings):
        data = PromptDataModule(
            str(tmp_path / "prompts.jsonl"), tokenizer=str(tmp_path / "tokenizer"), batch_size=4, val_share=0.0,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **settings,
        )  # fmt: skip
        module = Asked()
        trainer.fit(module, data)
        return module.seen

    return fit


@pytest.mark.parametrize(("limit", "num_batches"), [(2, 2), (100, 15)])
def test_each_epoch_asks_the_same_few_prompts_once(asked, limit, num_batches):
    seen = asked(overfit_batches=limit)
    assert len(seen) == 3 * num_batches
    epochs = [sorted(chain(*seen[i * num_batches : (i + 1) * num_batches])) for i in range(3)]
    assert len(set(epochs[0])) == 4 * num_batches and epochs[0] == epochs[1] == epochs[2]


def test_without_it_all_are_asked(asked):
    assert len({prompt for batch in asked() for prompt in batch}) == 60
