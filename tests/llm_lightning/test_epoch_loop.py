"""When validation comes: counted in optimizer steps, and never within one."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from llm_lightning.run.trainer import RunTrainer


class Recorder(LightningModule):
    """Notes the step of each validation, and whether gradients of half a step are there."""

    def __init__(self, automatic: bool = True):
        super().__init__()
        self.automatic_optimization = automatic
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.validated = []

    def training_step(self, batch):
        loss = (self.weight * batch).mean()
        if not self.automatic_optimization:
            for _ in range(3):
                self.optimizers().step()
        return loss

    def validation_step(self, batch, batch_idx):
        assert not self.trainer.fit_loop._should_accumulate()
        self.validated.append((self.trainer.current_epoch, self.trainer.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def validated(tmp_path, automatic=True, **settings):
    module = Recorder(automatic)
    trainer = RunTrainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(14, 1)), DataLoader(torch.ones(1, 1)))
    return module.validated


@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_a_number_counts_steps_however_many_batches_each_has(tmp_path, accumulated):
    settings = {"max_steps": 9, "val_check_interval": 3, "check_val_every_n_epoch": None}
    found = validated(tmp_path, accumulate_grad_batches=accumulated, **settings)
    assert [step for _, step in found] == [3, 6, 9]


@pytest.mark.parametrize(
    ("share", "accumulated", "steps"),
    [(1.0, 1, [14]), (1.0, 4, [4]), (0.5, 1, [7, 14]), (0.5, 4, [2, 4]), (0.5, 3, [2, 4]), (0.25, 2, [*range(1, 8)])],
)
def test_a_share_is_one_of_an_epochs_steps_whose_last_may_be_shorter(tmp_path, share, accumulated, steps):
    found = validated(tmp_path, max_epochs=2, val_check_interval=share, accumulate_grad_batches=accumulated)
    per_epoch = -(-14 // accumulated)
    assert found == [(epoch, step + epoch * per_epoch) for epoch in range(2) for step in steps]


def test_a_module_that_steps_by_itself_is_counted_by_its_batches(tmp_path):
    found = validated(tmp_path, automatic=False, max_epochs=1, val_check_interval=4, check_val_every_n_epoch=None)
    assert [step for _, step in found] == [12, 24, 36]
