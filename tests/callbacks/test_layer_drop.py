"""Blocks that are left out: which ones, what comes out, what their weights get, and when it cannot be done."""

import copy
import statistics
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from callbacks import CallbackError, LayerDrop
from callbacks.network import blocks
from tests.callbacks.test_regularization import GPT2, IDS, LLAMA

BERT = BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, vocab_size=50,
                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip


class Module(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model


def built(config, **options):
    torch.manual_seed(0)
    kind = BertForMaskedLM if config is BERT else AutoModelForCausalLM
    return Module(kind.from_config(config) if kind is AutoModelForCausalLM else kind(config)).double().train()


@pytest.fixture(params=[LLAMA, GPT2, BERT], ids=["llama", "gpt2", "bert"])
def module(request):
    return built(request.param)


def trainer_at(step):
    return SimpleNamespace(global_step=step, strategy=None)


def attached(module, **options):
    callback = LayerDrop(**options)
    callback.on_fit_start(trainer_at(0), module)
    return callback


def left_out(callback, step):
    callback.on_train_batch_start(trainer_at(step), None, None, 0)
    return [gate.is_left_out for gate in callback._gates]


def gradients(model):
    model.zero_grad()
    model(input_ids=IDS).logits.square().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def drop(callback, *numbers):
    for number, gate in enumerate(callback._gates):
        gate.is_left_out = number in numbers


def by_hand(model, numbers, rate):
    """The same network whose blocks are functions: left out, or with what they add divided by the chance to be kept."""
    other = copy.deepcopy(model)
    for number, block in enumerate(blocks(other)):
        whole = block.forward

        def forward(states, *args, number=number, whole=whole, **kwargs):
            return states if number in numbers else states + (whole(states, *args, **kwargs) - states) / (1 - rate)

        block.forward = forward
    return other


def test_what_is_left_out_and_what_makes_up_for_it(module):
    expected = gradients(by_hand(module.model, {1, 3}, 0.25))
    callback = attached(module, rate=0.25)
    drop(callback, 1, 3)
    found = gradients(module.model)
    assert found.keys() == dict(module.model.named_parameters()).keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected.get(name, torch.zeros_like(gradient)), rtol=1e-10, atol=1e-12)
    assert all(not weight.grad.any() for n in (1, 3) for weight in blocks(module.model)[n].parameters())


def test_what_is_left_out_is_not_computed_and_evaluation_has_it_all(module):
    before = module.model(input_ids=IDS).logits
    ran = []
    for number, block in enumerate(blocks(module.model)):
        list(block.children())[-1].register_forward_hook(lambda *_, number=number: ran.append(number))
    callback = attached(module, rate=0.5)
    drop(callback)
    module.model(input_ids=IDS)
    ran.clear()
    drop(callback, 0, 2)
    module.model(input_ids=IDS)
    assert ran == [1, 3]
    with torch.no_grad():
        assert torch.equal(module.model(input_ids=IDS).logits, before)
    assert torch.equal(module.eval().model(input_ids=IDS).logits, before)
    callback.on_fit_end(None, module.train())
    assert torch.equal(module.model(input_ids=IDS).logits, before)
    assert not any("forward" in vars(block) for block in blocks(module.model))


@pytest.mark.parametrize("profile", ["uniform", "linear"])
def test_the_rate_of_each_depth(module, profile):
    callback = attached(module, rate=0.4, profile=profile)
    drawn = [left_out(callback, step // 4) for step in range(4000)]
    expected = [0.4] * 4 if profile == "uniform" else [0.1, 0.2, 0.3, 0.4]
    assert [statistics.mean(column) for column in zip(*drawn, strict=True)] == pytest.approx(expected, abs=0.03)
    both = statistics.mean(row[2] and row[3] for row in drawn)
    assert both == pytest.approx(expected[2] * expected[3], abs=0.03)


def test_draws_are_those_of_the_place_and_the_seed(module):
    straight, resumed, other = (attached(built(LLAMA), rate=0.5, seed=seed) for seed in (3, 3, 4))
    drawn = [left_out(straight, step // 3) for step in range(60)]
    assert [left_out(resumed, step // 3) for step in range(30, 60)] == drawn[30:]
    assert [left_out(other, step // 3) for step in range(60)] != drawn
    assert len({tuple(row) for row in drawn[:3]}) > 1  # micro-batches of one step differ


def test_activation_checkpointing_computes_the_same_again(module):
    callback = attached(module, rate=0.25)
    drop(callback, 0, 2)
    expected = gradients(module.model)
    module.model.activation_checkpointing_enable()
    found = gradients(module.model)
    assert all(torch.equal(found[name], wanted) for name, wanted in expected.items())


def test_a_copy_of_the_network_has_blocks_of_its_own(module):
    drop(attached(module, rate=0.25))
    copied = copy.deepcopy(module.model)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(2)
        expected = built(module.model.config if not isinstance(module.model, BertForMaskedLM) else BERT).model
        expected.load_state_dict(copied.state_dict())
        torch.testing.assert_close(copied(input_ids=IDS).logits, expected(input_ids=IDS).logits)


def test_frozen_weights_stay_without_a_gradient(module):
    for weight in blocks(module.model)[1].parameters():
        weight.requires_grad_(False)
    drop(attached(module, rate=0.25), 1, 2)
    gradients(module.model)
    assert all(weight.grad is None for weight in blocks(module.model)[1].parameters())
    assert all(weight.grad is not None for weight in blocks(module.model)[2].parameters())


def test_the_first_look_at_a_block_draws_no_numbers():
    config = copy.deepcopy(LLAMA)
    config.attention_dropout = 0.5
    module = Module(AutoModelForCausalLM.from_config(config)).train()
    drop(attached(module, rate=0.25), 0, 1, 2, 3)
    state = torch.get_rng_state()
    module.model(input_ids=IDS)
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_that_cannot_be_left_out_are_refused():
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    t5 = Module(T5ForConditionalGeneration(config)).train()
    drop(attached(t5, rate=0.5), 0)
    with pytest.raises(CallbackError, match=r"a T5Block hands on more than its states.*take StochasticDepth"):
        t5.model(input_ids=IDS, labels=IDS)
    compiled = built(LLAMA)
    blocks(compiled.model)[2].compile()
    with pytest.raises(CallbackError, match=r"set model\.backbone\.compile to false"):
        attached(compiled)
    by_itself = built(LLAMA)
    by_itself.automatic_optimization = False
    with pytest.raises(CallbackError, match="leave LayerDrop out"):
        attached(by_itself)
    with pytest.raises(CallbackError, match="no blocks were found in a Linear"):
        attached(Module(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rate": 1.0}, "LayerDrop.rate=1.0 must be above 0"), ({"profile": "cosine"}, "'cosine' must be `uniform`")],
)
def test_settings_out_of_range_are_named(options, words):
    with pytest.raises(CallbackError, match=words):
        LayerDrop(**options)
