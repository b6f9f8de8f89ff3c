"""Runs with adapters go on from their checkpoints, which hold no frozen weight; AdaLoRA's ranks over a run."""

import peft
import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import fingerprint
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.models.peft_methods import METHODS, SaveAfterEpoch, fit, module


@pytest.mark.parametrize("name", ["lora", "pissa", "adalora", "vera", "p_tuning", "prefix_tuning", "bottleneck"])
def test_resume(base, tmp_path, name):
    """Bit for bit, from a checkpoint that holds the adapter alone."""
    path = tmp_path / "half.ckpt"
    straight = fit(module(base, METHODS[name]()), callbacks=[SaveAfterEpoch(path, epoch=1)])
    checkpoint = torch.load(path, weights_only=True)
    own = straight.adapter.names
    assert {n.removeprefix("model.") for n in checkpoint["state_dict"]} <= own
    assert {n for n, p in straight.model.named_parameters() if p.requires_grad} <= own
    resumed = fit(module(base, METHODS[name]()), ckpt_path=path, seed=5)
    assert resumed.losses == straight.losses[6:]
    ours, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_residual_of_other_first_weights(base, tmp_path):
    """PiSSA's decomposition may come out otherwise on another machine; the checkpoint's base is made again."""
    path = tmp_path / "half.ckpt"
    straight = fit(module(base, METHODS["pissa"]()), callbacks=[SaveAfterEpoch(path, epoch=1)])
    config = METHODS["pissa"]()
    config.init_lora_weights = "olora"
    other = fit(module(base, config), ckpt_path=path)
    assert other.losses == pytest.approx(straight.losses[6:], rel=1e-4)


def test_another_base_or_adapter_is_refused(base, tmp_path):
    path = tmp_path / "half.ckpt"
    fit(module(base, METHODS["lora"]()), epochs=1, callbacks=[SaveAfterEpoch(path)])
    torch.manual_seed(7)
    save_model_folder(Backbone(config=tiny_config()).build(), None, tmp_path / "other")
    with pytest.raises(UserError, match="holds another network than the checkpoint"):
        fit(module(tmp_path / "other", METHODS["lora"]()), ckpt_path=path)
    with pytest.raises(UserError, match=r"of another model: .*lora_A"):
        fit(module(base, peft.LoraConfig(r=8, target_modules="all-linear")), ckpt_path=path)
    with pytest.raises(UserError, match="of another model"):
        fit(module(base, None), ckpt_path=path)
    full = tmp_path / "full.ckpt"
    fit(module(base, None), epochs=1, callbacks=[SaveAfterEpoch(full)])
    with pytest.raises(UserError, match=r"without model\.peft"):
        fit(module(base, METHODS["lora"]()), ckpt_path=full)


def test_a_fingerprint_sees_values_names_and_dtype(base):
    prints = {fingerprint(Backbone(path=str(base), dtype=d).build()) for d in ("float32", "float32", "bfloat16")}
    network = Backbone(path=str(base)).build()
    network.model.norm.weight.data[0] += 1e-3
    assert len(prints | {fingerprint(network)}) == 3


def test_adalora_ends_at_its_budget(base):
    """Ranks fall from 6 to 3 on average over the run's own 12 steps, not over total_step."""
    run = fit(module(base, METHODS["adalora"]()))
    pattern = run.model.active_peft_config.rank_pattern
    assert run.model.active_peft_config.total_step == 12
    assert sum(sum(kept) for kept in pattern.values()) == 3 * len(pattern)
    for name, parameter in run.model.named_parameters():
        if "lora_E" in name:
            key = next(k for k in pattern if k.replace(".default", "") in name.replace(".default", ""))
            assert (parameter.detach().flatten() != 0).tolist() == pattern[key]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (lambda: peft.AdaLoraConfig(total_step=10, target_modules="all-linear"), {"epochs": -1}, "max_steps"),
        (lambda: peft.AdaLoraConfig(total_step=99, tinit=20, tfinal=20, target_modules="all-linear"), {}, "tinit"),
        (lambda: peft.AdaLoraConfig(total_step=99, init_r=4, target_r=8, target_modules="all-linear"), {}, "init_r"),
    ],
)
def test_adaloras_settings(base, config, settings, message):
    with pytest.raises(UserError, match=message):
        fit(module(base, config()), **settings)
