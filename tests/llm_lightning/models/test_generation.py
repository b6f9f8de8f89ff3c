"""Whatever way a folder came to be, its network stops where a reply ends, and its settings can be saved again."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import _save_in_parts, save_model_folder
from llm_lightning.models.generation import generation_settings
from llm_lightning.modules import CausalPretraining, RewardModeling
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.conftest import tiny_config

# Ends a reply by one token and the conversation by another, as Phi's does.
TWO_ENDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ eos_token }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PICKY = "{{ raise_exception('no system turn') }}"


def ids(tokenizer, *tokens):
    return sorted(tokenizer.convert_tokens_to_ids(list(tokens)))


@pytest.mark.parametrize(
    ("family", "template", "eos", "ends"),
    [
        ("smollm2", None, "<|im_start|>", ["<|im_end|>", "<|im_start|>"]),
        ("llama3", None, "<|begin_of_text|>", ["<|begin_of_text|>", "<|eot_id|>"]),
        ("mistral", None, "</s>", ["</s>"]),
        ("qwen3", None, "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        ("qwen3", TWO_ENDS, "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        ("qwen3", {"default": TWO_ENDS, "tool_use": ENDLESS}, "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),
        ("qwen3", ENDLESS, "<|endoftext|>", ["<|endoftext|>"]),
        ("qwen3", PICKY, "<|endoftext|>", ["<|endoftext|>"]),
        ("qwen3", {"tool_use": TWO_ENDS}, "<|endoftext|>", ["<|endoftext|>"]),
    ],
)
def test_a_text_ends_with_the_tokenizers_end_and_with_a_replys(family, template, eos, ends):
    tokenizer = chat_tokenizer(family, template)
    tokenizer.eos_token = eos
    settings = generation_settings(GenerationConfig(), tokenizer)
    assert settings.eos_token_id == ids(tokenizer, *ends)
    again = generation_settings(settings, tokenizer)
    assert again.to_dict() == settings.to_dict()


def test_what_the_network_says_itself_stays():
    tokenizer = chat_tokenizer("qwen3")
    text = tokenizer("the").input_ids[0]
    former = GenerationConfig(eos_token_id=text, bos_token_id=text, pad_token_id=text, max_new_tokens=7)
    settings = generation_settings(former, tokenizer)
    assert settings.eos_token_id == sorted([text, *ids(tokenizer, "<|im_end|>")])
    assert (settings.bos_token_id, settings.pad_token_id) == (text, tokenizer.pad_token_id)
    assert settings.max_new_tokens == 7 and former.eos_token_id == text


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model that was never told of turns."""
    torch.manual_seed(0)
    tokenizer, folder = chat_tokenizer("qwen3"), tmp_path_factory.mktemp("base")
    tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", None
    save_model_folder(Backbone(config=tiny_config(vocab_size=448)).build(tokenizer), tokenizer, folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ids(tokenizer, "<|endoftext|>")
    return folder


PROMPT = torch.tensor([[5, 6, 7]])


def tuned(base):
    """A LoRA that answers the prompt by the end of a turn, and a tokenizer with a chat template, as others save one:
    its EOS is still the end of a text.
    """
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.eos_token = "<|endoftext|>"
    network = Backbone(path=str(base)).build()
    adapter = Adapter(network, peft.LoraConfig(r=1, target_modules=["lm_head"]))
    end, head = ids(tokenizer, "<|im_end|>")[0], network.lm_head
    with torch.no_grad():
        head.lora_A["default"].weight.copy_(network.model(PROMPT).last_hidden_state[:, -1])
        head.lora_B["default"].weight.zero_()[end] = 10.0
    return adapter, tokenizer, end


def merged(adapter, tokenizer, base, folder):
    save_model_folder(adapter.model, tokenizer, folder / "adapter", adapter=adapter)
    assert main(["merge", str(folder / "adapter"), str(folder / "merged")]) == 0
    return folder / "merged"


def of_others(adapter, tokenizer, base, folder):
    """An adapter folder as peft alone writes it."""
    adapter.model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    assert main(["merge", str(folder / "adapter"), str(folder / "merged")]) == 0
    return folder / "merged"


def built_on(adapter, tokenizer, base, folder):
    """The next stage, which takes the adapter folder as its network."""
    save_model_folder(adapter.model, tokenizer, folder / "adapter", adapter=adapter)
    save_model_folder(Backbone(path=str(folder / "adapter")).build(), tokenizer, folder / "next")
    return folder / "next"


def on_a_changed_base(adapter, tokenizer, base, folder):
    """As a callback leaves it that prunes."""
    with torch.no_grad():
        base_layer = adapter.model.get_base_model().model.layers[0].mlp.up_proj
        base_layer.weight[:4] = 0
    save_model_folder(adapter.model, tokenizer, folder / "pruned", adapter=adapter)
    return folder / "pruned"


def in_full(adapter, tokenizer, base, folder):
    save_model_folder(adapter.model.merge_and_unload(), tokenizer, folder / "full")
    return folder / "full"


def in_parts(adapter, tokenizer, base, folder):
    """As sharded strategies save: built without weights."""
    network = Backbone(path=str(base)).build(empty=True)
    whole = adapter.model.merge_and_unload()
    whole.generation_config = generation_settings(network.generation_config, tokenizer)
    _save_in_parts(whole, folder / "parts", True)
    tokenizer.save_pretrained(folder / "parts")
    return folder / "parts"


WAYS = [merged, of_others, built_on, on_a_changed_base, in_full, in_parts]


@pytest.mark.parametrize("way", WAYS)
def test_every_saved_folder_stops_at_the_end_of_a_turn(base, tmp_path, way):
    adapter, tokenizer, end = tuned(base)
    folder = way(adapter, tokenizer, base, tmp_path)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ids(tokenizer, "<|endoftext|>", "<|im_end|>")
    network = AutoModelForCausalLM.from_pretrained(folder)
    written = network.generate(PROMPT, max_new_tokens=20, do_sample=False)
    assert written[0, 3:].tolist() == [end]


def test_an_adapter_folder_says_where_to_stop(base, tmp_path):
    adapter, tokenizer, end = tuned(base)
    save_model_folder(adapter.model, tokenizer, tmp_path, adapter=adapter)
    assert end in GenerationConfig.from_pretrained(tmp_path).eos_token_id


def test_templates_of_every_name_are_in_the_merged_folder(base, tmp_path):
    adapter, tokenizer, _ = tuned(base)
    tokenizer.chat_template = {"default": TWO_ENDS, "tool_use": TWO_ENDS + "tools", "rag": TWO_ENDS + "documents"}
    folder = merged(adapter, tokenizer, base, tmp_path)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


GIVEN = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        (GIVEN, ["temperature", "top_p"]),
        ({"temperature": 0.9, "top_p": 0.6}, ["temperature", "top_p"]),
        ({"do_sample": True, "temperature": 0.0, "top_k": 20}, ["temperature", "top_k"]),
        ({"do_sample": True, "top_p": 2.0}, ["top_p"]),
        ({"do_sample": True, "temperature": "0.6"}, ["temperature"]),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0}, []),
        ({"early_stopping": True, "length_penalty": 2.0}, ["early_stopping", "length_penalty"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty"]),
        ({"pad_token_id": -1}, ["pad_token_id"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id"]),
        ({"output_scores": True}, ["output_scores"]),
    ],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_settings_without_effect_or_meaning_are_left_out_before_training(base, tmp_path, settings, left_out, file):
    folder = tmp_path / "odd"
    shutil.copytree(base, folder)
    if file == "config.json":  # where older models have them
        if left_out == ["output_scores"]:
            pytest.skip("transformers reads it otherwise there")
        if left_out == ["eos_token_id"]:
            (folder / "generation_config.json").unlink()
            (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | settings))
            with pytest.raises(UserError, match=r"cannot be read as a model.*eos_token_id"):
                Backbone(path=str(folder)).build()
            return
        (folder / "generation_config.json").unlink()
        settings = json.loads((folder / file).read_text()) | settings
    (folder / file).write_text(json.dumps(settings))
    network = Backbone(path=str(folder)).build()
    network.generation_config.eos_token_id = [1, 2]  # what was changed has to be right to be saved
    save_model_folder(network, None, tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert all(getattr(saved, name) in (None, [1, 2]) for name in left_out)
    kept = {"temperature", "top_k", "top_p", "repetition_penalty"} & settings.keys() - {*left_out}
    assert all(getattr(saved, name) == settings[name] for name in kept)
    network.generate(PROMPT, max_new_tokens=2)


def test_what_is_left_out_is_said(base, tmp_path, capsys, caplog):
    folder = tmp_path / "odd"
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps(GIVEN))
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        CausalPretraining(Backbone(path=str(folder))).check()
        assert "temperature=0.6, top_p=0.9" in caplog.text
        caplog.clear()
        RewardModeling(Backbone(path=str(folder))).check()  # writes nothing
        assert not caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"early_stopping": "maybe"}, "early_stopping"),
        ({"cache_implementation": "magic"}, "cache_implementation"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_transformers_does_not_even_read_are_refused_in_a_sentence(base, tmp_path, settings, words):
    folder = tmp_path / "odd"
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"generation_config.json cannot be used.*{words}.*Mend it"):
        CausalPretraining(Backbone(path=str(folder))).check()
