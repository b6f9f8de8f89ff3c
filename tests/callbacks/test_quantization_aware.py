import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from callbacks import CallbackError, Quantization, QuantizationAwareTraining
from callbacks.network import base_network
from callbacks.quantization import SCHEMES, Calibration
from callbacks.quantization.aware import trainable
from callbacks.quantization.layers import linear_layers
from callbacks.quantization.request import load_network
from callbacks.quantization.straight_through import RoundedLayers
from tests.callbacks.quantized import IDS, WideModule, effective_weights, needs, wide_network
from tests.callbacks.tiny_llama import ShardedTinyModule, TinyData, tiny_network, tiny_tokenizer, tiny_trainer

EVERY_SCHEME = ["int8", "int8-dynamic", "int4-rtn", "ternary", "int1"]


def int8(row, size):
    scale = max(abs(w) for w in row) / 127.5
    return [max(-128, min(127, round(w / scale))) * scale for w in row]


def int4(row, size):
    values = []
    for start in range(0, len(row), size):
        group = row[start : start + size]
        low, high = min(0.0, *group), max(0.0, *group)
        scale = float(torch.tensor((high - low) / 15).half())
        zero = round(-low / scale)
        values += [(max(0, min(15, round(w / scale) + zero)) - zero) * scale for w in group]
    return values


def ternary(row, size):
    values = []
    for start in range(0, len(row), size):
        group = row[start : start + size]
        scale = sum(abs(w) for w in group) / size
        values += [max(-1, min(1, round(w / scale))) * scale for w in group]
    return values


def signs(row, size):
    values = []
    for start in range(0, len(row), size):
        group = [w for w in row[start : start + size] if w]
        scale = sum(abs(w) for w in group) / len(group)
        values += [math.copysign(scale, w) if w else 0.0 for w in row[start : start + size]]
    return values


FORMULAS = {"int8": int8, "int8-dynamic": int8, "int4-rtn": int4, "ternary": ternary, "int1": signs}


def rounding(name, size=32, symmetric=False):
    return lambda weight: SCHEMES[name].rounded(weight, group_size=size, symmetric=symmetric)


def test_these_can_be_trained_for():
    assert trainable() == EVERY_SCHEME


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_weights_are_rounded_by_the_formula(name):
    needs("int8")
    torch.manual_seed(0)
    weight = torch.randn(6, 64)
    weight[torch.rand(6, 64) < 0.3] = 0
    expected = torch.tensor([FORMULAS[name](row, 32) for row in weight.double().tolist()])
    found = rounding(name)(weight)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert (found[weight == 0] == 0).all() and found.dtype == weight.dtype


@pytest.mark.parametrize("name", ["int4-rtn", "ternary", "int1"])
def test_groups_of_zeros_stay_zero(name):
    weight = torch.cat([torch.zeros(2, 32), torch.randn(2, 32)], 1)
    found = rounding(name)(weight)
    assert (found[:, :32] == 0).all() and found.isfinite().all()


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_gradients_go_past_the_rounding(name):
    """To weights and inputs, as they are at the rounded ones."""
    needs("int8")
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 8), torch.randn(5, 64, requires_grad=True)
    inputs = SCHEMES[name].rounded_inputs
    rounded = RoundedLayers(rounding(name), inputs, on=True)
    rounded.attach([layer])
    layer(x).square().sum().backward()
    weight = rounding(name)(layer.weight.detach()).double().requires_grad_()
    bias, same = layer.bias.detach().double().requires_grad_(), (inputs or (lambda y: y))(x.detach()).double()
    same.requires_grad_()
    (same @ weight.T + bias).square().sum().backward()
    for found, expected in ((layer.weight, weight), (layer.bias, bias), (x, same)):
        assert torch.allclose(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)
    rounded.on = False
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    rounded.detach()
    assert "forward" not in vars(layer)


def test_a_lora_is_rounded_with_the_weight():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 8, bias=False)), LoraConfig(r=2, target_modules=["0"]))
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    rounded = RoundedLayers(rounding("ternary"), on=True)
    rounded.attach([layer])
    x = torch.randn(3, 64)
    found = model(x)
    found.square().sum().backward()
    down, up = (each["default"].weight for each in (layer.lora_A, layer.lora_B))
    a, b = (each.detach().double().requires_grad_() for each in (down, up))
    merged = layer.base_layer.weight.detach().double() + layer.scaling["default"] * b @ a
    straight = merged + (rounding("ternary")(merged.detach().float()).double() - merged).detach()
    expected = x.double() @ straight.T
    expected.square().sum().backward()
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert torch.allclose(down.grad.double(), a.grad, atol=1e-3) and torch.allclose(up.grad.double(), b.grad, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(x), x @ layer.base_layer.weight.T)


class LoraModule(WideModule):
    def configure_model(self):
        if self.model is None:
            config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **self.settings)
            self.model = get_peft_model(wide_network(), config)
            for name, weight in self.model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(weight, std=0.1)

    def merge_adapter(self, adapter, folder):
        whole = copy.deepcopy(self.model).merge_and_unload()
        whole.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def lora_module(**settings):
    module = LoraModule(learning_rate=1e-3)
    module.settings = settings
    return module


def fit(root, *callbacks, module=None, num_rows=4, ckpt_path=None, **settings):
    torch.manual_seed(0)
    module = module or WideModule()
    trainer = tiny_trainer(root, callbacks=list(callbacks), **{"max_steps": 4, "val_check_interval": 2} | settings)
    trainer.fit(module, TinyData(num_rows=num_rows), ckpt_path=ckpt_path)
    return trainer, module


def quantization(name, **settings):
    return Quantization([name], num_batches=2, calibration=Calibration(8), **settings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, WideModule) for name in EVERY_SCHEME), ("ternary", lora_module), ("int4-rtn", lora_module)],
)
def test_the_quantized_folder_is_the_network_that_was_trained(tmp_path, capsys, name, kind):
    needs(name)
    aware = QuantizationAwareTraining()
    _, module = fit(tmp_path, aware, quantization(name, high_precision=["lm_head", "*.0.mlp.up_proj"]), module=kind())
    assert "The quantized folder is the network that was trained, to a KL of" in capsys.readouterr().out
    rounded = RoundedLayers(rounding(name, 64), SCHEMES[name].rounded_inputs, on=True)
    kept = ("lm_head", "model.layers.0.mlp.up_proj")
    names = [each for each in linear_layers(module.model) if each not in kept]
    rounded.attach([base_network(module.model).get_submodule(each) for each in names])
    with torch.no_grad():
        trained = module.model.eval()(IDS).logits
        quantized = load_network(tmp_path / "model" / "quantized", torch.device("cpu")).eval()(IDS).logits
    # Whole numbers of inputs that lie between two may go the other way; AutoRound's kernels do not compute in float32.
    assert torch.allclose(trained, quantized, atol=2e-2 if name in ("int8-dynamic", "int4-rtn") else 1e-5)
    if name == "int4-rtn" and kind is WideModule:
        for weight, original in effective_weights(tmp_path / "model" / "quantized", module.model).values():
            same = [torch.allclose(weight, each, atol=1e-7) for each in (rounding(name, 64)(original), original)]
            assert any(same)


def test_another_folder_than_what_was_trained_is_an_error(tmp_path, monkeypatch):
    """Planted: the folder's scales are not those of the training."""
    from callbacks.quantization import by_torchao

    def wrong(weight, size):
        levels, scale = by_torchao.ternarized(weight, size)
        return levels, 1.3 * scale

    needs("ternary")
    planted = replace(SCHEMES["ternary"], quantize=lambda request: by_torchao._of_three_levels(request, wrong))
    monkeypatch.setitem(SCHEMES, "ternary", planted)
    with pytest.raises(CallbackError, match="the quantized folder is not the network that was trained"):
        fit(tmp_path, QuantizationAwareTraining(), quantization("ternary"))


def test_a_network_that_knows_is_worth_more_when_it_is_rounded(tmp_path):
    """Four rows by heart: rounded without knowing of it, some of that is lost."""
    needs("int1")
    plain, aware = quantization("int1"), quantization("int1")
    fit(tmp_path / "plain", plain, max_steps=80, val_check_interval=80)
    fit(tmp_path / "aware", QuantizationAwareTraining(), aware, max_steps=80, val_check_interval=80)
    assert aware.kept.quality.perplexity < 1.25 < 1.3 < plain.kept.quality.perplexity


def test_training_before_the_start_is_as_without_and_validation_is_rounded_from_the_beginning(tmp_path):
    needs("int1")
    settings = {"max_steps": 6, "val_check_interval": 2, "logger": False}
    _, plain = fit(tmp_path / "plain", **settings)
    late, module = fit(tmp_path / "late", QuantizationAwareTraining("int1", start=4), **settings)
    assert module.losses[:4] == plain.losses[:4] and module.losses[4:] != plain.losses[4:]
    first, _ = fit(tmp_path / "a", QuantizationAwareTraining("int1", start=100), **settings | {"max_steps": 2})
    bare, _ = fit(tmp_path / "b", **settings | {"max_steps": 2})
    assert first.callback_metrics["train/loss"] == bare.callback_metrics["train/loss"]
    assert first.callback_metrics["val/loss"] != bare.callback_metrics["val/loss"]
    assert late.callback_metrics["val/loss"].isfinite()


def test_a_run_that_goes_on_has_the_losses_of_one_that_was_not_stopped(tmp_path):
    needs("ternary")
    settings = {"val_check_interval": 1000, "num_rows": 400}
    _, whole = fit(tmp_path / "whole", QuantizationAwareTraining("ternary", start=3), max_steps=8, **settings)
    for stop in (2, 5):
        trainer, _ = fit(
            tmp_path / f"{stop}", QuantizationAwareTraining("ternary", start=3), max_steps=stop, **settings
        )
        trainer.save_checkpoint(tmp_path / f"{stop}.ckpt")
        _, rest = fit(
            tmp_path / f"{stop}", QuantizationAwareTraining("ternary", start=3), max_steps=8,
            ckpt_path=tmp_path / f"{stop}.ckpt", **settings,
        )  # fmt: skip
        assert rest.losses == whole.losses[stop:]
        for name, weight in rest.model.state_dict().items():
            assert torch.equal(weight, whole.model.state_dict()[name])


def test_all_is_as_before_when_the_fit_is_over(tmp_path):
    needs("int8")
    for callbacks in ((), (quantization("int8"),)):
        _, module = fit(tmp_path, QuantizationAwareTraining("int8"), *callbacks)
        assert not any("forward" in vars(each) for each in module.model.modules())

    class Fails(WideModule):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    module = Fails()
    with pytest.raises(SystemExit):
        fit(tmp_path, QuantizationAwareTraining("int8"), module=module)
    assert not any("forward" in vars(each) for each in module.model.modules())


def test_sharded_weights_can_be_trained_and_not_quantized(tmp_path):
    """One rank of FSDP2: weights are DTensors wherever a layer does not compute."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    needs("ternary")
    aware = QuantizationAwareTraining("ternary", group_size=32)
    settings = {"strategy": ModelParallelStrategy(1, 1), "num_sanity_val_steps": 0}
    _, sharded = fit(tmp_path / "sharded", aware, module=ShardedTinyModule(), num_rows=400, **settings)

    class Whole(ShardedTinyModule):
        def configure_model(self):
            self.model = self.model or tiny_network()

    aware = QuantizationAwareTraining("ternary", group_size=32)
    _, whole = fit(tmp_path / "whole", aware, module=Whole(), num_rows=400)
    assert sharded.losses == pytest.approx(whole.losses, rel=1e-5)


def refused(root, *callbacks, module=None):
    with pytest.raises(CallbackError) as caught:
        fit(root, *callbacks, module=module)
    return str(caught.value)


def test_settings_that_are_wrong_or_not_those_of_the_quantization(tmp_path):
    needs("int8")
    with pytest.raises(CallbackError, match="start=-1 is below 0"):
        QuantizationAwareTraining("int8", start=-1)
    with pytest.raises(CallbackError, match="there is no 'int5'"):
        QuantizationAwareTraining("int5")
    with pytest.raises(
        CallbackError, match=r"scheme=int4 has no rounding that can be trained with; .*int4-rtn is the one"
    ):
        QuantizationAwareTraining("int4")
    assert "the run has no Quantization to take it from: name one of int8," in refused(
        tmp_path, QuantizationAwareTraining()
    )
    several = Quantization(["int8", "int1"], max_megabytes=1)
    assert "Quantization has several: name one of int8, int1" in refused(tmp_path, QuantizationAwareTraining(), several)
    one = quantization("int8")
    assert "scheme=ternary is not among Quantization.schemes=['int8']" in refused(
        tmp_path, QuantizationAwareTraining("ternary"), one
    )
    kept = QuantizationAwareTraining(high_precision=["*.0.*", "lm_head"])
    message = refused(tmp_path, kept, quantization("int8", high_precision=["lm_head"]))
    assert "high_precision=['*.0.*', 'lm_head'] differs from Quantization.high_precision=['lm_head']" in message
    sizes = QuantizationAwareTraining("ternary", group_size=32)
    assert "group_size=32 differs from Quantization.group_size=16: give it to Quantization alone" in refused(
        tmp_path, sizes, quantization("ternary", group_size=16)
    )
    changed = quantization("int8", options={"int8": {"set_inductor_config": False}})
    assert "Quantization.options changes int8" in refused(tmp_path, QuantizationAwareTraining(), changed)


def test_networks_that_cannot_be_trained_so(tmp_path):
    needs("int8")
    aware = QuantizationAwareTraining("ternary")
    assert "set model.peft.lora_dropout to 0" in refused(tmp_path, aware, module=lora_module(lora_dropout=0.1))
    assert "is no plain LoRA" in refused(
        tmp_path, QuantizationAwareTraining("ternary"), module=lora_module(use_dora=True)
    )
    assert "modules_to_save" in refused(
        tmp_path, QuantizationAwareTraining("ternary"), module=lora_module(modules_to_save=["lm_head"])
    )
    untied = WideModule(wide_network(tie_word_embeddings=False))
    message = refused(tmp_path, QuantizationAwareTraining("int8", high_precision=["*.0.*"]), module=untied)
    assert "the loss reads the weights of lm_head past its forward" in message
    narrow = WideModule(wide_network(hidden_size=96))
    assert "group_size=64 does not divide the 96 inputs" in refused(
        tmp_path, QuantizationAwareTraining("ternary"), module=narrow
    )
