"""Averages against loops in float64, in validations, checkpoints and folders, and when a run is stopped or killed."""

import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from callbacks import EMA, SWA, CallbackError, GracefulStop, ModelFolder, Pruning, RunCheckpoint, StopWhen
from callbacks.pruning import NM, Cubic, Magnitude, Structured
from tests.callbacks import averaged_runs
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import exit_codes, finish, free_port, recorded, running, wait_until


class Weights(Callback):
    """The weights after each optimizer step, in float64."""

    def __init__(self):
        self.by_step = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step not in self.by_step:
            self.by_step[trainer.global_step] = copies(pl_module)


def copies(module: LightningModule) -> dict[str, torch.Tensor]:
    return {name: weight.detach().double() for name, weight in module.named_parameters()}


def fit(root: Path, *callbacks, module=None, **settings):
    module = module or TinyModule()
    torch.manual_seed(0)
    trainer = tiny_trainer(root, callbacks=list(callbacks), enable_checkpointing=True, **settings)
    trainer.fit(module, TinyData())
    return module


def assert_close(average, expected, **tolerance):
    assert average.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(average[name].double(), weight, **(tolerance or {"rtol": 1e-5, "atol": 1e-7}))


def folder_weights(folder: Path) -> dict[str, torch.Tensor]:
    network = AutoModelForCausalLM.from_pretrained(folder)
    return {f"model.{name}": weight.detach() for name, weight in network.named_parameters()}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_ema_equals_a_loop_in_float64(tmp_path, decay):
    ema, weights = EMA(decay, start=3), Weights()
    fit(tmp_path, ema, weights, ModelFolder(), RunCheckpoint())
    expected = weights.by_step[3]
    for n, step in enumerate(range(4, 11), 1):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * value + (1 - d) * weights.by_step[step][name] for name, value in expected.items()}
    assert_close(ema.average, expected)
    assert ema.num_averaged == 8
    assert_close(folder_weights(tmp_path / "model" / "average"), expected)
    assert_close(folder_weights(tmp_path / "model" / "last"), weights.by_step[10], rtol=0, atol=0)


def test_swa_is_the_mean_of_every_so_many_steps(tmp_path):
    swa, weights = SWA(start=0.4, every_n_steps=2), Weights()
    fit(tmp_path, swa, weights, ModelFolder())
    taken = [weights.by_step[step] for step in (4, 6, 8, 10)]
    expected = {name: sum(each[name] for each in taken) / 4 for name in taken[0]}
    assert swa.num_averaged == 4
    assert_close(folder_weights(tmp_path / "model" / "average"), expected)


def test_decay_0_is_the_model_to_the_bit(tmp_path):
    module = fit(tmp_path, EMA(0), ModelFolder(), RunCheckpoint())
    last, average = (tmp_path / "model" / name / "model.safetensors" for name in ("last", "average"))
    assert last.read_bytes() == average.read_bytes()
    checkpoint = torch.load(tmp_path / "checkpoints" / "step=10.ckpt", weights_only=True)
    assert all(torch.equal(checkpoint["average"][name], p) for name, p in module.named_parameters())


def test_steps_are_counted_and_not_micro_batches(tmp_path):
    ema, weights = EMA(0.9), Weights()
    fit(tmp_path, ema, weights, accumulate_grad_batches=3, max_steps=4)
    assert ema.num_averaged == 4 and list(weights.by_step) == [0, 1, 2, 3, 4]


class Validated(TinyModule):
    """Keeps the weights that it is validated with."""

    def __init__(self):
        super().__init__()
        self.validated = {}

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.validated[self.trainer.global_step] = copies(self)


def test_validations_are_of_the_average_and_training_is_not_changed_by_a_bit(tmp_path):
    plain = fit(tmp_path / "plain", ModelFolder(), val_check_interval=2)
    module, ema = Validated(), EMA(start=3)
    fit(tmp_path / "averaged", ema, ModelFolder(), module=module, val_check_interval=2)
    assert module.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    weights = Weights()
    fit(tmp_path / "again", weights)
    assert_close(module.validated[2], weights.by_step[2], rtol=0, atol=0)
    assert_close(module.validated[10], copies_of(ema.average), rtol=0, atol=0)
    best = folder_weights(tmp_path / "averaged" / "model" / "best")
    assert any(all(torch.equal(best[n], w[n].float()) for n in best) for w in module.validated.values())


def copies_of(average):
    return {name: value.double() for name, value in average.items()}


def test_a_validation_that_raises_gives_the_training_weights_back(tmp_path):
    class Failing(TinyModule):
        def validation_step(self, batch, batch_idx):
            raise ValueError("no such batch")

    module, weights, ema = Failing(), Weights(), EMA()
    with pytest.raises(ValueError, match="no such batch"):
        fit(tmp_path, ema, weights, module=module)
    assert_close(copies(module), weights.by_step[5], rtol=0, atol=0)
    assert any((ema.average[name] != weight).any() for name, weight in module.named_parameters())


class StopInValidation(GracefulStop):
    def on_validation_start(self, trainer, pl_module):
        super().on_validation_start(trainer, pl_module)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_checkpoint_from_within_a_validation_holds_both_in_their_places(tmp_path):
    module, weights, ema = TinyModule(), Weights(), EMA()
    with pytest.raises(SystemExit):
        fit(tmp_path, ema, weights, RunCheckpoint(), StopInValidation(), module=module)
    checkpoint = torch.load(tmp_path / "checkpoints" / "step=5.ckpt", weights_only=True)
    assert_close({n: checkpoint["state_dict"][n] for n in weights.by_step[5]}, weights.by_step[5], rtol=0, atol=0)
    assert_close(checkpoint["average"], copies_of(ema.average), rtol=0, atol=0)
    assert checkpoint["callbacks"]["EMA"] == {"num_averaged": 5, "step": 5}
    assert_close(copies(module), weights.by_step[5], rtol=0, atol=0)


def test_a_callback_that_saves_before_it_is_its_turn_saves_the_newest_average(tmp_path):
    ema = EMA(0.5)
    fit(tmp_path, RunCheckpoint(every_n_steps=4), ema, max_steps=4, val_check_interval=100)
    checkpoint = torch.load(tmp_path / "checkpoints" / "step=4.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["EMA"]["num_averaged"] == 4
    assert_close(checkpoint["average"], copies_of(ema.average), rtol=0, atol=0)


def test_a_graceful_stop_leaves_its_average(tmp_path):
    class Stop(GracefulStop):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    ema = EMA(0.5)
    fit(tmp_path, ema, ModelFolder(), Stop())
    assert ema.num_averaged == 7
    assert_close(folder_weights(tmp_path / "model" / "average"), copies_of(ema.average), rtol=0, atol=0)


def test_bfloat16_weights_have_an_average_in_float32(tmp_path):
    class Half(TinyModule):
        def configure_model(self):
            super().configure_model()
            self.model.to(torch.bfloat16)

    ema, weights = EMA(0.5), Weights()
    module = fit(tmp_path, ema, weights, ModelFolder(), module=Half())
    expected = weights.by_step[1]
    for n, step in enumerate(range(2, 11), 1):
        d = min(0.5, (1 + n) / (10 + n))
        expected = {name: d * value + (1 - d) * weights.by_step[step][name] for name, value in expected.items()}
    assert {value.dtype for value in ema.average.values()} == {torch.float32}
    assert_close(ema.average, expected)
    saved = folder_weights(tmp_path / "model" / "average")
    assert all(torch.equal(value, ema.average[name].bfloat16()) for name, value in saved.items())
    assert next(module.parameters()).dtype == torch.bfloat16


def test_what_is_frozen_is_not_averaged(tmp_path):
    class Partly(TinyModule):
        def configure_model(self):
            super().configure_model()
            self.model.model.layers.requires_grad_(False)

    ema = EMA()
    fit(tmp_path, ema, module=Partly())
    assert ema.average.keys() == {"model.model.embed_tokens.weight", "model.model.norm.weight", "model.lm_head.weight"}


def test_pruned_weights_are_zero_in_the_average_too(tmp_path):
    pruning = Pruning(NM(2, 4), Magnitude(), Cubic(2, 8, 3), num_batches=0)
    ema = EMA(0.9)
    module = fit(tmp_path, ema, pruning, ModelFolder(), val_check_interval=2)
    assert pruning.masks.kept
    saved = folder_weights(tmp_path / "model" / "average")
    for name, kept in pruning.masks.kept.items():
        assert not ema.average[f"model.{name}"][~kept].any() and not saved[f"model.{name}"][~kept].any()
        assert ema.average[f"model.{name}"][kept].all()
    assert any((ema.average[name] != weight).any() for name, weight in module.named_parameters())


def test_an_adapter_on_a_pruned_base_is_averaged_with_its_mask(tmp_path):
    class Adapted(TinyModule):
        def configure_model(self):
            super().configure_model()
            self.model = get_peft_model(self.model, LoraConfig(target_modules=["q_proj", "up_proj"]))

    pruning = Pruning(NM(2, 4), Magnitude(), Cubic(2, 8, 3), num_batches=0)
    ema = EMA(0.9)
    module = fit(tmp_path, ema, pruning, module=Adapted())
    assert all(".lora_" in name for name in ema.average)
    with ema.in_place():
        merged = module.model.merge_and_unload()
    for name, kept in pruning.masks.kept.items():
        assert not merged.get_parameter(name)[~kept].any()


def test_no_network_is_validated_or_saved_before_the_start(tmp_path):
    module, ema = Validated(), EMA(start=50)
    fit(tmp_path, ema, ModelFolder(), RunCheckpoint(), module=module)
    assert ema.num_averaged == 0 and not (tmp_path / "model" / "average").exists()
    assert_close(module.validated[10], copies(module), rtol=0, atol=0)
    assert "average" not in torch.load(tmp_path / "checkpoints" / "step=10.ckpt", weights_only=True)


def test_validate_asks_the_average_of_the_checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[EMA(), RunCheckpoint()], enable_checkpointing=True)
    trainer.fit(TinyModule(), TinyData())
    in_fit = float(trainer.callback_metrics["val/loss"])
    for callbacks, is_same in (([EMA()], True), ([], False)):
        again = tiny_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=bool(callbacks))
        path = tmp_path / "checkpoints" / "step=10.ckpt"
        (found,) = again.validate(TinyModule(), TinyData(), ckpt_path=path, weights_only=True, verbose=False)
        assert (found["val/loss"] == in_fit) is is_same


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (lambda: [EMA(), SWA()], "a validation is of one average"),
        (lambda: [EMA(), StopWhen(restore_best=True)], "leave restore_best out"),
        (lambda: [EMA(), Pruning(Structured(channels=0.5))], "Structured cuts the network at its end"),
    ],
)
def test_callbacks_that_do_not_go_together(tmp_path, callbacks, words):
    with pytest.raises(CallbackError, match=words):
        fit(tmp_path, *callbacks())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EMA(decay=1), r"EMA\.decay=1 must be at least 0 and below 1"),
        (lambda: EMA(start=-1), r"EMA\.start=-1 must not be negative"),
        (lambda: SWA(every_n_steps=0), r"SWA\.every_n_steps=0 is below 1"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(CallbackError, match=words):
        make()


def test_quantized_weights_are_refused(tmp_path):
    class Quantized(torch.Tensor):
        """Stands for a library's tensor, whose numbers are not what is stored."""

    class Module(TinyModule):
        def configure_model(self):
            super().configure_model()
            head = self.model.lm_head
            head.weight = torch.nn.Parameter(head.weight.detach().as_subclass(Quantized))

    with pytest.raises(CallbackError, match=r"EMA: model\.lm_head\.weight is quantized"):
        fit(tmp_path, EMA(), module=Module())


def test_a_share_of_an_endless_run(tmp_path):
    with pytest.raises(CallbackError, match=r"SWA\.start=0\.75 is a share of a run without end"):
        fit(tmp_path, SWA(), max_steps=-1)


def test_sharded_weights_under_a_strategy_that_cannot_keep_their_average(processes, tmp_path):
    settings = {"world_size": 2, "port": free_port(), "sharded": True, "callbacks": averaged_runs.ema}
    assert finish(processes, tmp_path, **settings, max_steps=2) == [1, 1]
    assert "ModelParallelStrategy keeps nothing sharded" in (tmp_path / "output-0.txt").read_text()


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [
        (averaged_runs.ema, {"accumulate_grad_batches": 2}),
        (averaged_runs.swa, {}),
        (averaged_runs.ema, {"world_size": 2}),
    ],
    ids=["ema", "swa", "ddp"],
)
def test_killed_twice_it_goes_on_to_the_same_bits(processes, tmp_path, chosen, settings):
    settings = {"callbacks": chosen, "every_n_train_steps": 3, "max_steps": 16, "val_check_interval": 5} | settings
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    world_size = settings.get("world_size", 1)
    assert finish(processes, straight, port=free_port(), **settings) == [0] * world_size, log(straight)
    for at in (5, 11):
        with running(processes, killed, port=free_port(), step_seconds=0.05, **settings) as ranks:
            wait_until(lambda at=at: len(recorded(killed)) >= at * settings.get("accumulate_grad_batches", 1))
            for process in ranks:
                os.kill(process.pid, signal.SIGKILL)
            assert exit_codes(ranks) == [-signal.SIGKILL] * world_size
    assert finish(processes, killed, port=free_port(), **settings) == [0] * world_size, log(killed)
    assert recorded(killed) == recorded(straight)
    for rank in range(world_size):
        ours, theirs = (averaged_runs.dumped(root, rank) for root in (killed, straight))
        assert ours["num_averaged"] == theirs["num_averaged"] and ours["losses"] == theirs["losses"]
        assert all(torch.equal(ours["average"][name], theirs["average"][name]) for name in theirs["average"])


def log(root):
    return (root / "output-0.txt").read_text()
