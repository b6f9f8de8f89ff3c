"""Steps of growing size: how many micro-batches each has, that none is lost, and that a run goes on exactly."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import BatchSizeWarmup, CallbackError
from tests.callbacks.tiny_llama import BATCH_SIZE, SEQ_LEN, Rows, TinyData, TinyModule, tiny_network, tiny_trainer


class Module(TinyModule):
    """Counts its tokens, and is trained by plain SGD in float64, without dropout."""

    tokens_seen = 0

    def configure_model(self):
        if self.model is None:
            torch.manual_seed(0)
            self.model = tiny_network().double().eval()

    def on_train_start(self):
        self.model.eval()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.tokens_seen += self.trainer.accumulate_grad_batches * BATCH_SIZE * SEQ_LEN

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint):
        self.tokens_seen = checkpoint["seen"]


class Sizes(Callback):
    """The micro-batches of each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *_):
        while len(self.found) <= trainer.global_step:
            self.found.append(0)
        self.found[trainer.global_step - (not trainer.fit_loop._should_accumulate())] += 1


def fitted(root, *, num_rows=400, ckpt_path=None, saves=(), **options):
    seed_everything(0, verbose=False)
    module, sizes = Module(), Sizes()
    callbacks = [BatchSizeWarmup(**options), sizes, *saves]
    settings = {"accumulate_grad_batches": 5, "limit_val_batches": 0, "enable_checkpointing": bool(saves)}
    trainer = tiny_trainer(root, callbacks=callbacks, **settings | {"max_steps": 12})
    trainer.fit(module, TinyData(num_rows), ckpt_path=ckpt_path, weights_only=True)
    assert trainer.global_step == 12
    return module, [count for count in sizes.found if count], trainer


def by_hand(sizes):
    """SGD over the mean losses of so many micro-batches a step."""
    torch.manual_seed(0)
    model, rows, place = tiny_network().double().eval(), Rows(400), 0
    for count in sizes:
        model.zero_grad()
        for _ in range(count):
            batch = [rows[place + i] for i in range(BATCH_SIZE)]
            place += BATCH_SIZE
            model(**{name: torch.stack([row[name] for row in batch]) for name in batch[0]}).loss.div(count).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.1 * weight.grad
    return model


def test_steps_grow_and_no_gradient_is_lost(tmp_path):
    module, sizes, trainer = fitted(tmp_path, length=6, unit="steps")
    # 1 + 4 * step // 6, or the largest number below that the micro-batches before are a multiple of
    assert sizes == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    assert trainer.accumulate_grad_batches == 5 and trainer.callback_metrics["train/micro_batches"] == 5
    for found, expected in zip(module.model.parameters(), by_hand(sizes).parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # losses are of float32


def test_tokens_count_and_it_goes_on_exactly(tmp_path):
    options = {"length": 10 * BATCH_SIZE * SEQ_LEN, "start": 2}
    keeps = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, sizes, _ = fitted(tmp_path, saves=[keeps], **options)
    assert sizes == [2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5]
    for step in (3, 7):
        resumed, rest, _ = fitted(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert rest == sizes[step:]
        for found, expected in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
            assert torch.equal(found, expected)


def test_an_epoch_ends_with_a_shorter_step(tmp_path):
    _, sizes, _ = fitted(tmp_path, num_rows=22, length=1, unit="steps")  # 11 micro-batches an epoch
    assert sizes == [1, 1, 2, 4, 3, 5, 5, 1, 5, 5, 1, 5]


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"length": 9, "start": 5}, {}, r"start=5 must be below trainer.accumulate_grad_batches=5"),
        ({"length": 9}, {"max_epochs": 2}, r"max_epochs=2 are: count trainer.max_steps"),
        ({"length": 9}, {"val_check_interval": 0.5, "check_val_every_n_epoch": 1}, r"give a number of steps"),
    ],
)
def test_what_does_not_go_with_it_is_said(tmp_path, options, settings, words):
    trainer = tiny_trainer(tmp_path, accumulate_grad_batches=5, callbacks=[BatchSizeWarmup(**options)], **settings)
    with pytest.raises(CallbackError, match=words):
        trainer.fit(Module(), TinyData())


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("unit", "rows"), ("start", 0)])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(CallbackError, match=f"BatchSizeWarmup.{name}="):
        BatchSizeWarmup(**{"length": 9} | {name: value})
