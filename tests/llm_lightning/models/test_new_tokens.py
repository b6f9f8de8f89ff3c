"""Tokens added to a trained network: rows that begin at the mean, train, and are found again where they were saved."""

import json
import shutil

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.loading.new_tokens import add_rows
from llm_lightning.models.tasks import REWARD
from llm_lightning.modules import CausalPretraining
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.models.peft_methods import SaveAfterEpoch, disturb, fit, module

NEW = ["<|tool|>", "<|end_tool|>"]


def lora(**changes):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **changes)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path):
    """A network with as many rows as its tokenizer has tokens."""
    torch.manual_seed(0)
    tokenizer = chat_tokenizer("qwen3")
    config = tiny_config(vocab_size=len(tokenizer), tie_word_embeddings=request.param)
    save_model_folder(Backbone(config=config).build(tokenizer), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def extended(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(NEW, special_tokens=True)
    return tokenizer


def built(folder, **settings):
    tokenizer = extended(folder)
    return Backbone(path=str(folder), new_tokens=NEW, **settings).build(tokenizer), tokenizer


def rows(network):
    return network.get_input_embeddings().weight, network.get_output_embeddings().weight


def test_rows_begin_at_the_mean_and_change_nothing_else(folder):
    (network, tokenizer), plain = built(folder), Backbone(path=str(folder)).build()
    former = len(tokenizer) - len(NEW)
    assert network.config.vocab_size == len(tokenizer) == len(network.get_input_embeddings().weight)
    assert network.config.tie_word_embeddings == plain.config.tie_word_embeddings
    for new, old in zip(rows(network), rows(plain), strict=True):
        assert torch.equal(new[:former], old)
        torch.testing.assert_close(new[former:], old.mean(0, keepdim=True).expand(len(NEW), -1))
    text = torch.arange(4, 30)[None]
    assert torch.equal(network.eval()(text).logits[..., :former], plain.eval()(text).logits)


def test_rows_that_were_there_but_never_meant_anything_begin_at_the_mean_too(tmp_path):
    """Vocabularies are often padded; what stands there is noise or zeros."""
    tokenizer = chat_tokenizer("qwen3")
    config = tiny_config(vocab_size=448)
    save_model_folder(Backbone(config=config).build(tokenizer), tokenizer, tmp_path / "base")
    network, tokenizer = built(tmp_path / "base")
    ids = tokenizer.convert_tokens_to_ids(NEW)
    weight = rows(network)[0]
    assert len(weight) == 448 and max(ids) < 448
    torch.testing.assert_close(weight[ids], weight[: min(ids)].mean(0, keepdim=True).expand(2, -1))


def test_a_bias_of_the_head_grows_too():
    head = torch.nn.Linear(32, 128)
    network = Backbone(config=tiny_config(tie_word_embeddings=False)).build()
    network.lm_head = head
    expected = head.bias.detach().mean()
    assert add_rows(network, 131) == [128, 129, 130]
    torch.testing.assert_close(network.lm_head.bias[128:], expected.expand(3))


def test_trained_in_full_it_is_a_folder_like_others(folder, tmp_path):
    network, tokenizer = built(folder)
    disturb(network)
    save_model_folder(network, tokenizer, tmp_path / "full")
    loaded, text = AutoModelForCausalLM.from_pretrained(tmp_path / "full"), torch.arange(4, len(tokenizer))[None, -60:]
    torch.testing.assert_close(loaded.eval()(text).logits, network.eval()(text).logits)
    # The next stage names them once more, and nothing of them begins anew.
    again = Backbone(path=str(tmp_path / "full"), new_tokens=NEW).build(
        AutoTokenizer.from_pretrained(tmp_path / "full")
    )
    assert all(torch.equal(a, b) for a, b in zip(rows(again), rows(network), strict=True))


def trained(folder, tmp_path, **changes):
    network, tokenizer = built(folder)
    adapter = Adapter(network, lora(**changes))
    disturb(adapter.model)
    save_model_folder(adapter.model, tokenizer, tmp_path / "adapter", adapter=adapter)
    text = torch.tensor([[5, 6, *tokenizer.convert_tokens_to_ids(NEW), 7, 8]])
    return tmp_path / "adapter", text, adapter.model.eval()(text).logits.detach(), tokenizer


@pytest.mark.parametrize("changes", [{}, {"trainable_token_indices": {"embed_tokens": [3]}}], ids=["new", "and-own"])
def test_an_adapters_new_rows_are_saved_with_it_and_load_anywhere(folder, tmp_path, changes):
    path, text, expected, tokenizer = trained(folder, tmp_path, **changes)
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    indices = json.loads((path / "adapter_config.json").read_text())["trainable_token_indices"]
    ids = tokenizer.convert_tokens_to_ids(NEW)
    assert set(indices) == ({"embed_tokens"} if tied else {"embed_tokens", "lm_head"})
    assert indices["embed_tokens"] == ([3, *ids] if changes else ids)
    by_peft = AutoPeftModelForCausalLM.from_pretrained(path).eval()
    torch.testing.assert_close(by_peft(text).logits, expected)
    assert main(["merge", str(path), str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(text).logits, expected, rtol=1e-4, atol=1e-4)
    assert merged.config.tie_word_embeddings == tied and len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(
        merged.get_input_embeddings().weight
    )
    next_stage = Backbone(path=str(path), new_tokens=NEW).build(AutoTokenizer.from_pretrained(path)).eval()
    torch.testing.assert_close(next_stage(text).logits, expected, rtol=1e-4, atol=1e-4)


def test_only_the_new_rows_train(folder):
    network, _ = built(folder, dtype="bfloat16")
    adapter = Adapter(network, lora())
    names = {name for name in adapter.names if "lora" not in name}
    assert names and all("trainable_tokens" in name for name in names)
    sizes = {p.numel() for n, p in adapter.model.named_parameters() if p.requires_grad and "lora" not in n}
    assert sizes == {len(NEW) * 32}
    assert all(p.dtype == torch.float32 for p in adapter.model.parameters() if p.requires_grad)


def run(folder, **options):
    made = module(folder, lora() if options.pop("adapt") else None, new_tokens=NEW)
    made.tokenizer, made.setup = extended(folder), lambda stage: None
    return fit(made, **options)


@pytest.mark.parametrize("adapt", [True, False], ids=["lora", "full"])
def test_a_run_goes_on_bit_for_bit(folder, tmp_path, adapt):
    path = tmp_path / "half.ckpt"
    straight = run(folder, adapt=adapt, callbacks=[SaveAfterEpoch(path, epoch=1)])
    resumed = run(folder, adapt=adapt, ckpt_path=path, seed=5)
    assert resumed.losses == straight.losses[6:]
    ours, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_reward_model_reads_them(folder):
    network = Backbone(path=str(folder), new_tokens=NEW).build(extended(folder), REWARD)
    assert len(network.get_input_embeddings().weight) == len(extended(folder))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config": tiny_config()}, "for a network that is trained already"),
        ({"path": "base", "new_tokens": "<|tool|>"}, "give a list"),
        ({"path": "base", "new_tokens": [""]}, "give a list"),
    ],
)
def test_mistakes_are_named_before_training(settings, words):
    with pytest.raises(UserError, match=words):
        CausalPretraining(Backbone(**{"new_tokens": NEW} | settings)).check()


def test_what_cannot_train_rows_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="IA3Config cannot train their rows"):
        CausalPretraining(Backbone(path=str(folder), new_tokens=NEW), peft=peft.IA3Config()).check()
    with pytest.raises(UserError, match="network that is sharded"):
        Backbone(path=str(folder), new_tokens=NEW).check_sharded()
    with pytest.raises(UserError, match="tokenizer of the data has no"):
        Backbone(path=str(folder), new_tokens=NEW).build(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(UserError, match=r"name the tokens to add in model\.backbone\.new_tokens"):
        Backbone(path=str(folder)).build(extended(folder))


def test_a_network_without_a_tokenizer_of_its_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    network, tokenizer = Backbone(path=str(tmp_path / "bare"), new_tokens=NEW).build(extended(folder)), extended(folder)
    assert network.new_token_ids == tokenizer.convert_tokens_to_ids(NEW)
