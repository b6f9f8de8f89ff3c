"""Noise in training: how much there is, where there is none, and that networks are left as they were."""

import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from callbacks import CallbackError, NEFTune, StochasticDepth
from callbacks.network import blocks
from callbacks.regularization.neftune import text_lengths
from callbacks.regularization.stochastic_depth import Drop

LLAMA = LlamaConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=50,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=50, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
IDS = torch.arange(24).view(2, 12)
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8], list(range(12))])


class Module(LightningModule):
    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config)


@pytest.fixture(params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def module(request):
    return Module(request.param).train()


def embedded(module) -> torch.Tensor:
    return module.model.get_input_embeddings()(IDS).detach()


def test_texts_in_a_row_are_counted_by_themselves():
    assert text_lengths(POSITIONS).tolist() == [[3] * 3 + [9] * 9, [12] * 12]
    assert text_lengths(torch.tensor([[4, 5, 0, 1], [1, 2, 3, 0]])).tolist() == [[2, 2, 2, 2], [3, 3, 3, 1]]


def test_neftune_is_as_large_as_each_text_would_have_it_alone(module):
    before = embedded(module)
    callback = NEFTune(alpha=5)
    callback.on_fit_start(None, module)
    callback.on_train_batch_start(None, module, {"position_ids": POSITIONS}, 0)
    noise = torch.stack([embedded(module) - before for _ in range(400)]).abs()
    most = 5 / (text_lengths(POSITIONS).float() * 16).sqrt()
    found = noise.amax(dim=(0, 3))
    assert (found <= most + 1e-5).all() and (found > 0.98 * most).all()
    assert noise.mean(dim=(0, 3)) == pytest.approx(most / 2, rel=0.1)
    callback.on_train_batch_start(None, module, {"input_ids": IDS}, 1)  # rows of one text
    assert (embedded(module) - before).abs().max() <= 5 / (12 * 16) ** 0.5
    with torch.no_grad():
        assert torch.equal(embedded(module), before)
    module.eval()
    assert torch.equal(embedded(module), before)
    callback.on_fit_end(None, module.train())
    assert torch.equal(embedded(module), before)


def test_blocks_are_found_in_their_order(module):
    assert [type(block).__name__ for block in blocks(module.model)] in (["LlamaDecoderLayer"] * 4, ["GPT2Block"] * 4)
    assert blocks(torch.nn.Linear(2, 2)) == []


def test_rows_leave_blocks_out_at_the_rate_of_their_depth(module):
    callback = StochasticDepth(rate=0.8)
    seen = []
    found = blocks(module.model)
    callback.on_fit_start(None, module)
    for block in found:
        block.register_forward_hook(
            lambda block, args, kwargs, output: seen.append(
                torch.equal((output[0] if isinstance(output, tuple) else output)[0], args[0][0])
            ),
            with_kwargs=True,
        )
    rows = IDS[:1].expand(1, -1)
    for _ in range(300):
        module.model(input_ids=rows)
    left_out = torch.tensor(seen).view(300, 4).float().mean(dim=0)
    assert left_out == pytest.approx(torch.tensor([0.2, 0.4, 0.6, 0.8]), abs=0.1)
    callback.on_exception(None, module, RuntimeError())
    seen.clear()
    module.model(input_ids=rows)
    assert seen == [False] * 4


class Adds(torch.nn.Module):
    def forward(self, hidden_states):
        return hidden_states + 1.0


def test_what_is_kept_makes_up_for_what_is_left_out():
    torch.manual_seed(0)
    adds, states = Adds().train(), torch.randn(4000, 2, 16)
    adds.register_forward_hook(Drop(0.5), with_kwargs=True)
    change = (adds(hidden_states=states) - states).detach()
    assert set(change[:, 0, 0].round(decimals=3).tolist()) == {0.0, 2.0}
    assert float(change.mean()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(change[:, 0, 0], change[:, 1, 5])
    assert torch.equal(adds.eval()(states), states + 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NEFTune(alpha=0), "NEFTune.alpha=0 must be above 0"),
        (lambda: StochasticDepth(rate=1.0), "StochasticDepth.rate=1.0 must be above 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_named(make, words):
    with pytest.raises(CallbackError, match=words):
        make()
