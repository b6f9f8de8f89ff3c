"""What is in a .gguf file is the network, as transformers reads it; what could not be is refused."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, PreTrainedTokenizerFast

from llm_lightning.errors import UserError
from llm_lightning.export.gguf.network import architecture_of
from llm_lightning.export.gguf.tokenizer import describe
from llm_lightning.export.source import read_source
from llm_lightning.export.targets import TARGETS
from tests.llm_lightning.export.conftest import CONFIGS, SIZES, trained_tokenizer

IDS = torch.arange(4, 40)[None]


def written(folder, form, place):
    source = read_source(folder)
    TARGETS["gguf"].check(source, form)
    place.mkdir()
    TARGETS["gguf"].write(source, form, place)
    return f"model-{form}.gguf"


def logits(folder, **options):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()(IDS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_holds_the_network(models, tmp_path, name):
    file = written(models(name), "f32", tmp_path / "out")
    read = logits(tmp_path / "out", gguf_file=file, quantization_config=GgufConfig(dequantize=True))
    torch.testing.assert_close(read, logits(models(name)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "apart", "size"), [("f16", 0.02, 2.0), ("bf16", 0.2, 2.0), ("q8_0", 2.0, 1.1)])
def test_formats_are_as_near_and_as_small_as_they_say(models, tmp_path, form, apart, size):
    file = written(models("llama"), form, tmp_path / "out")
    read = logits(tmp_path / "out", gguf_file=file, quantization_config=GgufConfig(dequantize=True))
    expected = logits(models("llama"))
    assert 0 < (read - expected).abs().max() < apart
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(models("llama")).parameters())
    assert (tmp_path / "out" / file).stat().st_size < weights * size + 40_000  # tokens and merges


def test_the_tokenizer_and_its_template_are_in_the_file(models, tmp_path):
    file = written(models("llama"), "f16", tmp_path / "out")
    own, read = (
        AutoTokenizer.from_pretrained(models("llama")),
        AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file=file),
    )
    text = "<|im_start|>Größe 123 我 <|im_end|>\n"
    assert read(text).input_ids == own(text).input_ids
    assert read.chat_template == own.chat_template
    assert read.eos_token_id == own.eos_token_id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type='linear'"),
        ({"per_layer_config": {0: {"intermediate_size": 32}}}, "per_layer_config"),
    ],
)
def test_what_the_file_cannot_say_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        architecture_of(LlamaConfig(**SIZES | changes))


def test_an_unknown_architecture_is_refused_by_its_name():
    from transformers import GPTNeoXConfig

    with pytest.raises(UserError, match="gpt_neox"):
        architecture_of(GPTNeoXConfig())


def fast(model, pre_tokenizer=None):
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a")


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (fast(models.WordLevel({"a": 0}, unk_token="a")), "WordLevel"),
        (fast(models.BPE({"a": 0}, [], byte_fallback=True)), "SentencePiece"),
        (fast(models.BPE({"a": 0}, []), pre_tokenizers.Whitespace()), "splits text"),
        (fast(models.BPE({"a": 0}, []), pre_tokenizers.ByteLevel(add_prefix_space=True)), "splits text"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(tokenizer, words):
    with pytest.raises(UserError, match=words):
        describe(tokenizer, 8)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused():
    with pytest.raises(UserError, match="embeddings"):
        describe(trained_tokenizer(), 100)


def test_a_weight_too_large_for_half_precision_is_refused(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models("llama"), folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e5
    network.save_pretrained(folder)
    with pytest.raises(UserError, match=r"mlp.up_proj.weight .* take gguf:bf16"):
        written(folder, "f16", tmp_path / "out")
    written(folder, "bf16", tmp_path / "other")


def test_quantized_weights_are_refused(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantized"):
        read_source(folder)
