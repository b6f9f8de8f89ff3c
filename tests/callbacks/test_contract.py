"""A module that lacks what a callback needs is refused before training; what a callback can do without is left out."""

import pytest
import torch
from lightning.pytorch import LightningModule

from callbacks import (
    CallbackError,
    ModelFolder,
    Predictions,
    Pruning,
    Quantization,
    Reliability,
    RolloutTable,
    RunSummary,
    Samples,
    StopWhen,
    Throughput,
)
from callbacks.pruning import Linear, Unstructured
from tests.callbacks.tiny_llama import TinyData, tiny_network, tiny_tokenizer, tiny_trainer


class Bare(LightningModule):
    """Has nothing that a LightningModule does not need; its network has a name of its own."""

    def __init__(self):
        super().__init__()
        self.network = tiny_network()
        self.num_batches = 0

    def training_step(self, batch, batch_idx):
        self.num_batches += 1
        return self.network(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.network(**batch).loss)

    def predict_step(self, batch, batch_idx):
        return [{"rows": len(batch["input_ids"])}]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithTokenizer(Bare):
    def __init__(self):
        super().__init__()
        self.tokenizer = tiny_tokenizer()


def fit(root, callback, module):
    trainer = tiny_trainer(root, callbacks=[callback], max_steps=2, val_check_interval=1)
    trainer.fit(module, TinyData())


@pytest.mark.parametrize(
    ("make", "module", "lacking"),
    [
        (ModelFolder, Bare, "save_model"),
        (Throughput, Bare, "model"),
        (Samples, Bare, "tokenizer"),
        (Samples, WithTokenizer, "model"),
        (lambda: Pruning(Unstructured(0.5)), Bare, "model"),
        (
            lambda: Pruning(Unstructured(0.5), schedule=Linear(begin=1, end=99, interval=9, unit="tokens")),
            Bare,
            "tokens_seen",
        ),
        (lambda: Quantization(["int8"]), Bare, "save_model"),
    ],
)
def test_what_a_callback_needs_is_asked_for_before_training(tmp_path, make, module, lacking):
    callback, module = make(), module()
    name = type(callback).__name__
    with pytest.raises(
        CallbackError, match=f"{name} needs a module with `{lacking}`, and {type(module).__name__} has "
    ):
        fit(tmp_path, callback, module)
    assert module.num_batches == 0


@pytest.mark.parametrize("make", [Reliability, RolloutTable, RunSummary, StopWhen])
def test_what_a_callback_can_do_without_is_not(tmp_path, make):
    module = Bare()
    fit(tmp_path, make(), module)
    assert module.num_batches == 2


def test_predictions_need_not_go_on_where_they_were(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[Predictions()])
    trainer.predict(Bare(), TinyData().val_dataloader(), return_predictions=False)
    assert (tmp_path / "predictions.jsonl").read_text() == '{"rows": 2}\n' * 2
