"""Each condition stops a real run when it should and not before, and goes on from a checkpoint as if nothing were."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM

from callbacks import (
    Budget,
    CallbackError,
    Divergence,
    ModelFolder,
    NoImprovement,
    NotFinite,
    RandomState,
    RunCheckpoint,
    RunSummary,
    StopWhen,
    Target,
)
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import finish, free_port, recorded, stops_by_what_one_rank_sees

NAN, INF = math.nan, math.inf
NOISE = [3.0, 3.2, 2.9, 3.1, 3.0, 2.8, 3.1, 2.9]  # within a band of 2.4 to 3.6


class Scripted(TinyModule):
    """Logs, beside its own metrics, what a list says for each step: `train/x` at steps, `val/x` at validations."""

    def __init__(self, train=(), val=(), skipped=()):
        super().__init__()
        self.train_values, self.val_values, self.skipped = train, val, skipped

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        step = self.trainer.global_step
        if step < len(self.train_values):
            self.log("train/x", self.train_values[step])
        if self.skipped:
            self.log("train/skipped_steps", float(self.skipped[step]))
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.val_values:
            self.log("val/x", self.val_values[self.trainer.global_step - 1])


def fit(root, stopping, module=None, *others, resume=False, **settings):
    callbacks = [RandomState(), *stopping, *others, RunCheckpoint()]
    settings = {"val_check_interval": 1, "enable_checkpointing": True} | settings
    trainer = tiny_trainer(root, callbacks=callbacks, **settings)
    newest = max((root / "checkpoints").glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    trainer.fit(module or Scripted(), TinyData(), ckpt_path=newest if resume else None, weights_only=True)
    return trainer


def of_training(condition, **settings):
    return condition(monitor="train/x", **settings)


def of_validation(condition=NoImprovement, **settings):
    return condition(monitor="val/x", **settings)


FALLING = [5.0, 4.0, 3.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
CASES = {
    "patience in validations": (of_validation, {"patience": 3}, [5, 4, 3, 3, 3.5, 3, 1], 6),
    "better just in time": (of_validation, {"patience": 3}, [5, 4, 3, 3, 3.5, 2, 2, 2, 1, 1], None),
    "mode max": (of_validation, {"mode": "max", "patience": 2}, [1, 2, 3, 2.5, 3, 4], 5),
    "min_delta": (of_validation, {"patience": 2, "min_delta": 0.5}, [5, 4, 3.6, 3.5, 3.3], 4),
    "min_delta adds up": (of_validation, {"patience": 3, "min_delta": 0.5}, [5, 4.8, 4.6, 4.4, 4.2, 4.0, 3.8], None),
    "relative": (of_validation, {"patience": 2, "min_delta": 0.1, "relative": True}, [5, 4, 3.7, 3.65], 4),
    "relative, below zero": (of_validation, {"patience": 2, "min_delta": 0.1, "relative": True}, [-5, -5.4, -5.5], 3),
    "NaN is no improvement": (of_validation, {"patience": 2}, [5, NAN, NAN, 1], 3),
    "NaN from the start": (of_validation, {"patience": 2}, [NAN] * 5, 3),
    # Running means 5, 3.67, 3.86, 4.93, 4.97: the dip to 3 that a plain patience waits from is smoothed away.
    "smoothing": (of_validation, {"patience": 2, "smoothing": 0.5}, [5, 3, 4, 6, 5, 4], 4),
    "patience in steps": (of_training, {"condition": NoImprovement, "patience": 4, "unit": "steps"},
                          [5, 4, 3, 3, 3, 3, 3, 2], 7),
    "patience in tokens": (of_training, {"condition": NoImprovement, "patience": 4 * 32, "unit": "tokens"},
                           [5, 4, 3, 3, 3, 3, 3, 2], 7),
    "beyond the band": (of_training, {"condition": Divergence, "window": 8, "patience": 3}, [*NOISE, 9, 9, 8, 9], 11),
    "a lone spike": (of_training, {"condition": Divergence, "window": 8, "patience": 3}, [*NOISE, 9, 9, 3, 9, 9, 3],
                     None),
    "before the window is full": (of_training, {"condition": Divergence, "window": 8, "patience": 1}, [3, 30, 3, 40],
                                  None),
    "a falling loss": (of_training, {"condition": Divergence, "window": 4, "patience": 1}, FALLING, None),
    "below the band": (of_training, {"condition": Divergence, "window": 8, "patience": 1, "mode": "max"},
                       [*NOISE, 3.2, 1.0], 10),
    "NaN in a row": (of_training, {"condition": NotFinite, "patience": 3}, [5, NAN, NAN, 4, NAN, INF, NAN, 4], 7),
    "a NaN that passes": (of_training, {"condition": NotFinite, "patience": 3}, [5, NAN, NAN, 4, NAN, NAN, 4], None),
    "target": (of_validation, {"condition": Target, "value": 2.0}, [5, 4, 3, 2.0, 1], 4),
    "target, mode max": (of_validation, {"condition": Target, "value": 0.5, "mode": "max"}, [0.1, 0.2, 0.6], 3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_stops_when_it_should_and_not_before(tmp_path, case):
    make, settings, values, expected = CASES[case]
    stopping = StopWhen([make(**settings)])
    module = Scripted(train=values) if make is of_training else Scripted(val=values)
    interval = 1 if make is of_validation else 100
    trainer = fit(tmp_path, [stopping], module, max_steps=len(values), val_check_interval=interval)
    assert trainer.global_step == (expected or len(values))
    assert (stopping.stopped and stopping.stopped["step"]) == expected


@pytest.mark.parametrize("case", [name for name, (*_, expected) in CASES.items() if expected])
def test_it_keeps_its_patience_over_a_resume(tmp_path, case):
    make, settings, values, expected = CASES[case]
    for last_step in (expected - 1, expected + 2):
        stopping = StopWhen([make(**settings)])
        module = Scripted(train=values) if make is of_training else Scripted(val=values)
        interval = 1 if make is of_validation else 100
        resume = last_step > expected
        trainer = fit(tmp_path, [stopping], module, resume=resume, max_steps=last_step, val_check_interval=interval)
    assert stopping.stopped is not None and trainer.global_step == expected
    assert len(module.losses) == 1


def test_a_token_budget_ends_at_the_step_that_uses_it_up(tmp_path):
    stopping = StopWhen([Budget(tokens=4 * 32)])
    assert fit(tmp_path, [stopping]).global_step == 4
    assert stopping.stopped["reason"] == "the budget of 128 tokens is used up"


def test_a_budget_of_time_counts_all_attempts(tmp_path):
    assert fit(tmp_path, [StopWhen([Budget(hours=1)])], max_steps=3).global_step == 3
    state = torch.load(tmp_path / "checkpoints" / "step=3.ckpt", weights_only=True)
    spent = state["callbacks"]["EarlyStopping"]["seconds"]
    assert 0 < spent < 60
    assert fit(tmp_path, [StopWhen([Budget(hours=spent / 3600)])], resume=True).global_step == 4


def test_the_first_of_several_conditions_ends_it(tmp_path, capsys):
    conditions = [of_validation(patience=9), of_validation(Target, value=1.5), NotFinite(), Budget(tokens=10**9)]
    stopping, summary = StopWhen(conditions), RunSummary()
    trainer = fit(tmp_path, [stopping, summary], Scripted(val=FALLING))
    assert trainer.global_step == 5
    assert stopping.stopped["reason"] == "val/x reached 1 (target 1.5)"
    output = capsys.readouterr().out
    assert "Stopping at step 5: val/x reached 1 (target 1.5)." in output
    assert "stopped  val/x reached 1 (target 1.5) at step 5\n" in output


def test_a_step_that_was_left_out_counts_as_not_finite(tmp_path):
    """Its loss is not logged, so that the metrics still hold the one before."""
    skipped = [0, 1, 1, 2, 3, 4, 4, 4, 4, 4]
    stopping = StopWhen([of_training(NotFinite, patience=3)])
    assert fit(tmp_path, [stopping], Scripted(train=[5.0], skipped=skipped)).global_step == 6


def test_between_micro_batches_it_waits_for_the_step_to_end(tmp_path):
    """Validations after micro-batches 3, 6, ...; that of micro-batch 9 lies in step 5, whose gradients must count."""
    stopping = StopWhen([of_validation(Target, value=3)])
    module = Scripted(val=[5, 4, 4, 3, 3, 3, 3, 3, 3, 3])
    trainer = fit(tmp_path, [stopping], module, accumulate_grad_batches=2, val_check_interval=3)
    assert stopping.stopped["step"] == 4 and trainer.global_step == 5
    assert len(module.losses) == 10
    assert (tmp_path / "checkpoints" / "step=5.ckpt").exists()


def test_not_before_min_steps(tmp_path):
    stopping = StopWhen([of_validation(Target, value=4)])
    module = Scripted(val=[4, 9, 9, 9, 9, 9, 3, 3, 3, 3])
    assert fit(tmp_path, [stopping], module, min_steps=6, min_epochs=0).global_step == 7


class Validations(Callback):
    def __init__(self):
        self.steps = []

    def on_validation_start(self, trainer, *_):
        self.steps.append(trainer.global_step)


def test_it_ends_with_a_validation_a_checkpoint_and_the_model_folders(tmp_path):
    validations = Validations()
    trainer = fit(tmp_path, [StopWhen([Budget(tokens=3 * 32)])], None, validations, ModelFolder(), val_check_interval=5)
    assert trainer.global_step == 3 and validations.steps == [3]
    state = torch.load(tmp_path / "checkpoints" / "step=3.ckpt", weights_only=True)
    assert state["callbacks"]["ModelFolder"]["best_value"] is not None, "written before the validation"
    for name in ("last", "best"):
        assert (tmp_path / "model" / name / "config.json").exists()


def test_a_stopped_run_stays_stopped_until_its_condition_is_changed(tmp_path):
    def again(*conditions):
        module = Scripted(val=FALLING)
        trainer = fit(tmp_path, [StopWhen(list(conditions))], module, resume=True)
        return trainer.global_step, len(module.losses)

    fit(tmp_path, [StopWhen([of_validation(Target, value=2)])], Scripted(val=FALLING))
    assert again(of_validation(Target, value=2)) == (4, 0)
    assert again(NotFinite(), of_validation(Target, value=2)) == (4, 0)
    assert again(of_validation(Target, value=0.85)) == (7, 3)
    assert again(NotFinite()) == (10, 3)


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


class RisingLater(Scripted):
    """Gets worse by its metric from step 3 on; remembers its weights."""

    def __init__(self):
        super().__init__(val=[5, 4, 3, 4, 5, 6, 7, 8, 9, 10])
        self.by_step = {}

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.by_step[self.trainer.global_step] = weights(self.model).clone()


def test_the_best_weights_are_put_back_also_over_a_resume(tmp_path):
    first, second = RisingLater(), RisingLater()
    fit(tmp_path, [StopWhen([of_validation()], restore_best=True)], first, ModelFolder("val/x"), max_steps=4)
    trainer = fit(tmp_path, [StopWhen([of_validation()], restore_best=True)], second, ModelFolder("val/x"), resume=True)
    assert trainer.global_step == 6 and list(second.by_step) == [5, 6]
    for network in (second.model, AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "last")):
        assert torch.equal(weights(network), first.by_step[3])
    state = torch.load(tmp_path / "checkpoints" / "step=6.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(state["model.model.norm.weight"], second.model.model.norm.weight), "what a resume needs"
    assert {path.name for path in (tmp_path / "checkpoints").glob("best=*")} == {"best=3.ckpt"}


def test_ranks_that_see_different_things_stop_together(processes, tmp_path):
    """The metric is NaN on rank 1 alone; the other goes on learning from what it sees."""
    settings = {"world_size": 2, "max_steps": 12, "callbacks": stops_by_what_one_rank_sees}
    assert finish(processes, tmp_path, port=free_port(), **settings) == [0, 0]
    assert len(recorded(tmp_path, 0)) == len(recorded(tmp_path, 1)) == 6
    assert (tmp_path / "checkpoints" / "step=6.ckpt").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StopWhen([]), "StopWhen.conditions: there is none"),
        (lambda: StopWhen([NotFinite()], restore_best=True), "StopWhen.restore_best: a NoImprovement"),
        (lambda: NoImprovement(patience=0), "NoImprovement.patience: 0 is below 1"),
        (lambda: NoImprovement(min_delta=-1), "NoImprovement.min_delta: -1 is negative"),
        (lambda: NoImprovement(min_delta=5, relative=True), "NoImprovement.min_delta: 5 is no share"),
        (lambda: NoImprovement(smoothing=1), "NoImprovement.smoothing: 1 must be"),
        (lambda: NoImprovement("train/loss"), "NoImprovement.unit: 'validations' cannot count for 'train/loss'"),
        (lambda: Divergence(window=1), "Divergence.window: 1 is below 2"),
        (lambda: NotFinite(patience=0), "NotFinite.patience"),
        (lambda: Target(NAN), "Target.value"),
        (lambda: Budget(), "Budget.hours"),
        (lambda: Budget(tokens=0), "Budget.tokens: 0 is not above 0"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(CallbackError, match=words.replace("(", r"\(")):
        make()


@pytest.mark.parametrize(
    ("conditions", "others", "settings", "words"),
    [
        ([of_validation()], [], {"num_sanity_val_steps": 1}, "nothing logs 'val/x'; logged are .*val/loss"),
        ([NoImprovement()], [], {"limit_val_batches": 0}, "waits for validations, and this run has none"),
    ],
)
def test_what_cannot_be_watched_is_said_before_training(tmp_path, conditions, others, settings, words):
    module = Scripted()
    with pytest.raises(CallbackError, match=words):
        fit(tmp_path, [StopWhen(conditions)], module, *others, **settings)
    assert module.losses == []


def test_the_model_folder_must_not_come_first_where_the_best_is_restored(tmp_path):
    with pytest.raises(CallbackError, match="name StopWhen before it"):
        fit(tmp_path, [ModelFolder(), StopWhen(restore_best=True)])
