"""LoRA on a base that is pruned: trained as it will be merged."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from callbacks import CallbackError, Pruning
from callbacks.pruning import Cubic, Structured, Taylor, Unstructured
from tests.callbacks.pruning.fits import Chosen, fit
from tests.callbacks.tiny_llama import tiny_network

IDS = torch.arange(3, 51).view(2, 24)


class Adapted(Chosen):
    def __init__(self, config, **settings):
        super().__init__(**settings)
        self.config = config

    def configure_model(self):
        if self.model is None:
            self.model = get_peft_model(tiny_network(), self.config)


def lora(**settings):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | settings)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_merging_keeps_the_zeros_and_computes_what_was_trained(tmp_path, dropout):
    pruning = Pruning(Unstructured(0.5), schedule=Cubic(2, 8, 2))
    module, zeros = fit(tmp_path, pruning, module=Adapted(lora(lora_dropout=dropout)), max_steps=12)
    assert zeros.sparsities[-1] == pytest.approx(0.5, abs=1e-3)
    assert "model.layers.0.mlp.up_proj.weight" in pruning.masks.kept, "under the names that transformers has"
    trained = module.model.eval()(input_ids=IDS).logits
    merged = copy.deepcopy(module.model).merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(input_ids=IDS).logits, trained, rtol=1e-4, atol=1e-5)
    for name, kept in pruning.masks.kept.items():
        assert torch.equal(merged.get_parameter(name) != 0, kept)


def test_the_adapter_learns_what_a_masked_matrix_would(tmp_path):
    """Its gradient is that of B A under the mask, by autograd."""
    pruning = Pruning(Unstructured(0.5), schedule=Cubic(1, 3, 1))
    module, _ = fit(tmp_path, pruning, module=Adapted(lora()), max_steps=3)
    layer = module.model.base_model.model.model.layers[0].mlp.up_proj
    x, kept = torch.randn(5, 32), pruning.masks.kept["model.layers.0.mlp.up_proj.weight"]
    layer.zero_grad()
    layer(x).square().sum().backward()
    a, b = (p["default"].weight.detach().double().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    weight = layer.base_layer.weight.double() + (b @ a) * layer.scaling["default"] * kept
    (x.double() @ weight.T).square().sum().backward()
    torch.testing.assert_close(layer.lora_A["default"].weight.grad.double(), a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.lora_B["default"].weight.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


def test_structured_pruning_merges_and_cuts(tmp_path):
    pruning = Pruning(Structured(channels=0.5), schedule=Cubic(2, 8, 2))
    module, _ = fit(tmp_path, pruning, module=Adapted(lora()), measured=True, max_steps=10)
    assert type(module.model).__name__ == "LlamaForCausalLM"
    assert module.model.model.layers[0].mlp.up_proj.weight.shape == (32, 32)
    assert module.model(input_ids=IDS).logits.isfinite().all()
    assert "pruned" in (tmp_path / "pruning.txt").read_text()


@pytest.mark.parametrize(
    ("config", "criterion", "words"),
    [
        (lora(use_dora=True), None, "DoRA"),
        (IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), None, "IA3"),
        (lora(), Taylor(), "frozen"),
    ],
)
def test_what_cannot_be_merged_into_a_pruned_network_is_refused(tmp_path, config, criterion, words):
    with pytest.raises(CallbackError, match=words):
        fit(tmp_path, Pruning(Unstructured(0.5), criterion), module=Adapted(config))


def test_a_reward_model_is_pruned_too(tmp_path):
    """One label and no language head; its own training step and loss."""
    from transformers import LlamaForSequenceClassification

    class Reward(Chosen):
        def configure_model(self):
            if self.model is None:
                config = tiny_network().config
                config.num_labels, config.pad_token_id = 1, 0
                self.model = LlamaForSequenceClassification(config)

        def loss(self, batch):
            rewards = self.model(input_ids=batch["input_ids"]).logits[:, 0]
            return -torch.nn.functional.logsigmoid(rewards[0] - rewards[1])

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.loss(batch))

    pruning = Pruning(Structured(channels=0.25), schedule=Cubic(2, 8, 2))
    module, zeros = fit(tmp_path, pruning, module=Reward(), measured=True, max_steps=10)
    assert zeros.sparsities[-1] == 0.25 and module.model.config.intermediate_size == 48
    text = (tmp_path / "pruning.txt").read_text()
    assert "parameters" in text and "perplexity" not in text
