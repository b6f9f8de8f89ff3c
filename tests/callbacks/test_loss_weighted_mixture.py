"""Shares that follow validation losses: the rule against numpy, planted sources, and runs that go on."""

import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from callbacks import CallbackError, LossWeightedMixture, RunCheckpoint
from callbacks.mixing.loss_weighted import moved
from datamodules import DataError, TextDataModule
from datamodules.records.text_source import TextSource
from llm_lightning.modules.metrics.sources import SourceLosses
from tests.callbacks.tiny_llama import TinyData, tiny_trainer

NUM_WORDS = 62
ZERO = {"quick": 0.0, "slow": 0.0}


class Bigrams(LightningModule):
    """Which word follows which: the smallest language model that learns."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(NUM_WORDS + 2, NUM_WORDS + 2)
        torch.nn.init.zeros_(self.table.weight)
        self.seen, self.history = [], []

    def setup(self, stage):
        self.source_losses = SourceLosses(self.trainer.datamodule.val_source_names)

    def loss_of(self, batch):
        targets = batch["labels"][:, 1:]
        logits = self.table(batch["input_ids"][:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), (targets >= 0).sum()

    def training_step(self, batch, batch_idx):
        loss, count = self.loss_of(batch)
        self.seen.append(batch["input_ids"].tolist())
        return loss / count

    def validation_step(self, batch, batch_idx):
        self.source_losses.update(batch["source_number"], *self.loss_of(batch))

    def on_validation_epoch_end(self):
        losses = self.source_losses.compute()
        self.log_dict({f"val/{name}": torch.tensor(loss) for name, loss in losses.items()})
        self.history.append({name.removeprefix("loss/"): float(np.float32(loss)) for name, loss in losses.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=5.0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two sources of which the next word always follows from the last: one is a circle of 2 words, the other of 60."""
    folder = tmp_path_factory.mktemp("planted")
    words = {f"w{n}": n for n in range(NUM_WORDS)} | {"<s>": NUM_WORDS, "</s>": NUM_WORDS + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder / "tokenizer")
    slow = 2 + np.random.default_rng(0).permutation(60)
    for name, circle in (("quick", [0, 1]), ("slow", slow)):
        texts = [" ".join(f"w{circle[(n + m) % len(circle)]}" for m in range(10 + n)) for n in range(100)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def data_of(folder, first=None, second=None, **options):
    one, other = ({"weight": 1.0} | (given or {}) for given in (first, second))
    sources = [TextSource(str(folder / f"{name}.jsonl"), **each) for name, each in (("quick", one), ("slow", other))]
    settings = {"seq_len": 16, "batch_size": 4, "val_share": 0.2, "cache_dir": str(folder / "cache")}
    return TextDataModule(sources=sources, tokenizer=str(folder / "tokenizer"), **settings | options)


def fitted(folder, root, *, ckpt_path=None, data=None, reference=ZERO, settings=None, **options):
    seed_everything(0, verbose=False)
    module = Bigrams()
    callbacks = [LossWeightedMixture(reference, **options), RunCheckpoint(every_n_steps=7, keep=99)]
    trainer = tiny_trainer(root, callbacks=callbacks, enable_checkpointing=True, **{"max_steps": 35} | (settings or {}))
    data = data or data_of(folder)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, data, trainer


@pytest.fixture(scope="module")
def whole(planted, tmp_path_factory):
    """A run that nothing interrupts, and its folder."""
    root = tmp_path_factory.mktemp("whole")
    module, data, trainer = fitted(planted, root)
    return module, data.state_dict()["shares"], trainer, root


def test_the_rule_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shares, losses, reference = rng.dirichlet(np.ones(5)), 4 * rng.random(5), 4 * rng.random(5)
        rate, smoothing = 3 * rng.random() + 0.01, rng.random() / 2
        alpha = np.exp(np.log(shares) + rate * np.maximum(losses - reference, 0))
        expected = (1 - smoothing) * alpha / alpha.sum() + smoothing / 5
        named = [dict(zip("abcde", each.tolist(), strict=True)) for each in (shares, losses, reference)]
        found = moved(*named, rate, smoothing)
        np.testing.assert_allclose([found[name] for name in "abcde"], expected, rtol=1e-14)
        assert math.fsum(found.values()) == pytest.approx(1, abs=1e-15)


def test_rows_go_to_the_source_that_is_learned_slowly(whole):
    module, changes, trainer, _ = whole
    assert len(module.history) == 7 and all(losses["slow"] > losses["quick"] for losses in module.history)
    share = 0.5
    for losses, (_, shares) in zip(module.history, changes, strict=True):  # two sources, by hand
        odds = share / (1 - share) * np.exp(max(losses["slow"], 0) - max(losses["quick"], 0))
        share = (1 - 1e-3) * odds / (1 + odds) + 1e-3 / 2
        assert shares[1] == pytest.approx(share, rel=1e-12) and sum(shares) == pytest.approx(1, abs=1e-15)
    assert [sample for sample, _ in changes] == list(range(20, 141, 20))  # 4 rows a batch, from the next batch on
    assert share > 0.95
    assert float(trainer.callback_metrics["train/share/slow"]) == pytest.approx(changes[-2][1][1])
    is_slow = np.array([row.min() > 1 for batch in module.seen for row in map(np.array, batch)])
    assert is_slow[:20].mean() == pytest.approx(0.5, abs=0.1)
    assert is_slow[80:].mean() == pytest.approx(np.mean([shares[1] for _, shares in changes[3:-1]]), abs=0.05)


def test_a_source_that_is_where_it_should_be_leaves_its_share(planted, tmp_path):
    _, data, _ = fitted(planted, tmp_path, reference={"quick": 0.0, "slow": 99.0}, rate=3.0, settings={"max_steps": 10})
    assert data.shares()["quick"] > 0.8


@pytest.mark.parametrize(("step", "workers"), [(21, 2), (7, 0), (14, 0)])
def test_it_goes_on_exactly_with_any_workers(planted, whole, tmp_path, step, workers):
    module, changes, _, root = whole
    path, data = root / "checkpoints" / f"step={step}.ckpt", data_of(planted, num_workers=workers)
    resumed, _, _ = fitted(planted, tmp_path, ckpt_path=path, data=data)
    assert resumed.seen == module.seen[step:] and data.state_dict()["shares"] == changes
    assert torch.equal(resumed.table.weight, module.table.weight)


def test_a_validation_that_is_begun_anew_moves_shares_once(planted, whole, tmp_path):
    stopped = []

    class Stops(RunCheckpoint):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 15:
                stopped.append(self.save_within_validation(trainer))
                raise KeyboardInterrupt

    trainer = tiny_trainer(
        tmp_path / "cut", callbacks=[LossWeightedMixture(ZERO), Stops()], enable_checkpointing=True, max_steps=35
    )
    with pytest.raises(SystemExit):
        trainer.fit(Bigrams(), data_of(planted))
    resumed, data, _ = fitted(planted, tmp_path / "cut", ckpt_path=stopped[0])
    assert resumed.seen == whole[0].seen[15:] and data.state_dict()["shares"] == whole[1]


def test_a_validation_beyond_the_schedule_moves_nothing(planted, tmp_path):
    class Stops(RunCheckpoint):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 12
            super().on_train_batch_end(trainer, *args)

    module, data = Bigrams(), data_of(planted)
    trainer = tiny_trainer(
        tmp_path, callbacks=[LossWeightedMixture(ZERO), Stops()], enable_checkpointing=True, max_steps=35
    )
    trainer.fit(module, data)
    assert trainer.global_step == 12 and len(module.history) == 3
    assert [sample for sample, _ in data.state_dict()["shares"]] == [20, 40]


def test_without_it_the_order_is_another_one(planted, whole, tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    with pytest.raises(DataError, match="not those of the checkpoint"):
        trainer.fit(Bigrams(), data_of(planted), ckpt_path=whole[3] / "checkpoints" / "step=7.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("data", "reference", "words"),
    [
        (
            {"first": {"weight_schedule": [(100, 2.0)]}},
            ZERO,
            "weight_schedule of .*quick.jsonl' and LossWeightedMixture",
        ),
        ({"first": {"weight": None}, "second": {"weight": None}}, ZERO, "begins with their weights"),
        ({"val_share": 0.0}, ZERO, "'quick' has no rows to validate on"),
        ({"val_share": None, "val_path": "slow.jsonl"}, ZERO, r"'quick' has no rows to validate on.*\['slow'\]"),
        ({}, {"quick": 1.0}, r"losses of \['quick'\], and the sources are \['quick', 'slow'\]"),
    ],
)
def test_what_does_not_go_with_it_is_said_before_anything_is_read(planted, data, reference, words):
    with pytest.raises((DataError, CallbackError), match=words):
        LossWeightedMixture(reference).check(data_of(planted, **data))


def test_one_source_and_other_data_are_refused(planted):
    one = TextDataModule(sources=[TextSource(str(planted / "slow.jsonl"), 1.0)], tokenizer=str(planted / "tokenizer"))
    with pytest.raises(DataError, match="moves shares between several of them"):
        LossWeightedMixture({"slow": 1.0}).check(one)
    with pytest.raises(CallbackError, match="TinyData has no sources whose shares can be moved"):
        LossWeightedMixture({"slow": 1.0}).check(TinyData())


def test_a_source_of_which_nothing_validates_is_named_once_that_is_known(planted, tmp_path):
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": f"w1 w{n} " * 5}) + "\n" for n in range(3)))
    sources = [TextSource(str(path), 1.0) for path in (planted / "slow.jsonl", tmp_path / "few.jsonl")]
    data = TextDataModule(
        sources=sources, tokenizer=str(planted / "tokenizer"), seq_len=16, val_share=0.01, cache_dir=str(tmp_path)
    )
    with pytest.raises(DataError, match="'few' has no rows to validate on"):
        fitted(planted, tmp_path, data=data, reference={"slow": 0.0, "few": 0.0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit_val_batches": 2}, "limit_val_batches=2 leaves sources out"),
        ({"val_check_interval": "00:00:01:00"}, "val_check_interval is a time"),
    ],
)
def test_validations_are_whole_and_counted(planted, tmp_path, settings, words):
    with pytest.raises(CallbackError, match=words):
        fitted(planted, tmp_path, settings=settings)


@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("smoothing", 1.0), ("reference", {"a": -1.0})])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(CallbackError, match=f"LossWeightedMixture.{name}"):
        LossWeightedMixture(**{"reference": {"a": 1.0}} | {name: value})
