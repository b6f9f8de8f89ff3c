import math

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig, get_peft_model

from callbacks import CallbackError, Pruning
from callbacks.pruning import Regrow, Taylor, Unstructured, Wanda
from callbacks.pruning.selection import exchanged
from callbacks.training_loop import is_accumulating
from tests.callbacks.pruning.fits import Chosen, Zeros, fit
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_network, tiny_trainer


def by_sorting(kept, scores, gradients, share):
    """RigL's choice in float64: `count` of the lowest scores go, and the largest gradients of what is not left come."""
    count = round(share * int(kept.sum()))
    order = scores.double().masked_fill(~kept, float("inf")).flatten().argsort()
    left = kept.flatten().clone()
    left[order[:count]] = False
    order = gradients.double().abs().flatten().masked_fill(left, -1).argsort(descending=True)
    comes = torch.zeros_like(left)
    comes[order[:count]] = True
    return left.view_as(kept), comes.view_as(kept)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_exchange_is_that_of_the_paper(share):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(12, 30, generator=generator) < 0.3
    scores, gradients = torch.rand(2, 12, 30, generator=generator)
    found = exchanged(kept, scores, gradients - 0.5, share)
    expected = by_sorting(kept, scores, gradients - 0.5, share)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert int((found[0] | found[1]).sum()) == int(kept.sum())


class Before(Callback):
    """In front of `Pruning`: the masks and gradients of a step, and the weights that it left."""

    def __init__(self, pruning):
        self.pruning = pruning

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(self.after_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        masks = self.pruning.masks
        self.kept = {name: mask.clone() for name, mask in masks.kept.items()}
        self.gradients = {name: masks.parameters[name].grad.clone() for name in self.kept}

    def after_step(self, *_):
        self.weights = {name: self.pruning.masks.parameters[name].detach().clone() for name in self.kept}


class Behind(Callback):
    """Behind `Pruning`: whether it exchanged what the paper would."""

    def __init__(self, pruning, before):
        self.pruning, self.before, self.changes = pruning, before, []

    def on_train_batch_end(self, trainer, *_):
        masks, before = self.pruning.masks, self.before
        if is_accumulating(trainer) or all(torch.equal(masks.kept[name], mask) for name, mask in before.kept.items()):
            return
        self.changes.append(trainer.global_step)
        for name, kept in before.kept.items():
            share = 0.25 * (1 + math.cos(math.pi * (trainer.global_step - 1) / 11))
            left, comes = by_sorting(kept, before.weights[name].abs(), before.gradients[name], share)
            assert torch.equal(masks.kept[name], left | comes), name
            weight = masks.parameters[name].detach()
            assert not weight[comes].any() and torch.equal(weight[left], before.weights[name][left])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_fit_exchanges_what_the_paper_would_and_keeps_the_number(tmp_path, accumulated):
    pruning = Pruning(Unstructured(0.8), schedule=Regrow(begin=1, end=12, interval=3, share=0.5), num_batches=0)
    before, zeros = Before(pruning), Zeros(pruning)
    behind = Behind(pruning, before)
    callbacks = [before, pruning, zeros, behind]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, max_steps=14, accumulate_grad_batches=accumulated)
    trainer.fit(Chosen(weight_decay=0.0), TinyData())
    assert behind.changes == [4, 7, 10] and set(zeros.sparsities) == {zeros.sparsities[-1]}
    assert zeros.sparsities[-1] == pytest.approx(0.8, abs=1e-3)
    assert "Pruned: 80.0% of the weights that could be" in (tmp_path / "pruning.txt").read_text()


@pytest.mark.parametrize("criterion", [Wanda, Taylor])
def test_other_criteria_say_what_goes(tmp_path, criterion):
    pruning = Pruning(Unstructured(0.5), criterion(), Regrow(begin=1, end=8, interval=2))
    _, zeros = fit(tmp_path, pruning, max_steps=8)
    assert set(zeros.sparsities[1:]) == {zeros.sparsities[-1]} and zeros.sparsities[-1] == pytest.approx(0.5, abs=1e-3)


class Poison(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 3:
            pl_module.model.get_submodule("model.layers.1.mlp.up_proj").weight.grad.fill_(math.nan)


class Cure(Callback):
    """As a module that leaves such a step out."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.nan_to_num_(0)


def test_a_step_whose_gradients_are_not_finite_exchanges_nothing(tmp_path):
    masks = []
    for others in ((), (Poison(),)):  # one exchange in four steps
        pruning = Pruning(Unstructured(0.5), schedule=Regrow(begin=1, end=6, interval=3, share=0.5), num_batches=0)
        torch.manual_seed(0)
        module = Chosen(torch.optim.SGD, lr=0.0)
        tiny_trainer(tmp_path, callbacks=[*others, pruning, Cure()], max_steps=6).fit(module, TinyData())
        masks.append(pruning.masks)
    assert all(not torch.equal(masks[0].kept[name], masks[1].kept[name]) for name in masks[0].kept)
    for name, kept in masks[1].kept.items():
        assert torch.equal(masks[1].parameters[name] != 0, kept), name


def test_frozen_weights_have_no_gradients_to_come_back_by(tmp_path):
    class Adapted(TinyModule):
        def configure_model(self):
            config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = self.model or get_peft_model(tiny_network(), config)

    with pytest.raises(CallbackError, match="Regrow needs gradients, and weights are frozen"):
        fit(tmp_path, Pruning(Unstructured(0.5), schedule=Regrow()), module=Adapted())
