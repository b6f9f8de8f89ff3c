import importlib.util

import pytest
import torch

from callbacks import CallbackError, Quantization
from callbacks.quantization import Calibration, schemes
from callbacks.quantization.layers import check_quantized
from callbacks.quantization.request import load_network
from tests.callbacks.quantized import WideModule, fit, needs, quantization, wide_network


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schemes": []}, "schemes is empty: name some of int8, int8-dynamic"),
        ({"schemes": ["int7"]}, "there is no 'int7'; there are int8, "),
        ({"schemes": ["int8", "int8"], "max_megabytes": 1}, "int8 is named twice"),
        ({"schemes": ["int8", "int1"]}, "several schemes need a limit to choose by: max_perplexity_increase"),
        ({"group_size": 0, "schemes": ["int1"]}, "group_size=0"),
        ({"group_size": 32}, "group_size has no effect on int8"),
        ({"symmetric": True}, "symmetric has no effect on int8"),
        ({"options": {"int4": {}}}, "options: 'int4' is not among the schemes"),
        ({"num_batches": 0}, "num_batches=0"),
        ({"schemes": ["int4"], "calibration": Calibration(num_rows=0)}, "calibration.num_rows=0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, words):
    with pytest.raises(CallbackError, match=words):
        Quantization(**settings)


def trained(module):
    return bool(module.losses)


def refused(tmp_path, callback, network=None, **settings):
    """The message; nothing was trained."""
    module = WideModule(network)
    with pytest.raises(CallbackError) as error:
        fit(tmp_path, callback, module, **settings)
    assert not trained(module)
    return str(error.value)


def test_a_group_size_that_does_not_divide_names_layer_and_sizes_that_do(tmp_path):
    needs("int1")
    message = refused(tmp_path, quantization("int1", group_size=48))
    assert "group_size=48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj" in message
    assert "16, 32, 64 divide all layers" in message


def test_the_default_group_size_is_checked_too(tmp_path):
    needs("int1")
    network = wide_network(hidden_size=96)
    assert "group_size=64 does not divide the 96 inputs" in refused(tmp_path, quantization("int1"), network)


def test_widths_that_a_library_would_leave_are_refused(tmp_path):
    needs("int4")
    network = wide_network(intermediate_size=144)
    message = refused(tmp_path, quantization("int4", group_size=16), network)
    assert "int4 needs widths that are multiples of 32, and model.layers.0.mlp.gate_proj is 64 x 144" in message


def test_a_scheme_that_the_device_cannot_run_names_those_it_can(tmp_path):
    needs("int8")
    message = refused(tmp_path, quantization("float8-dynamic"))
    assert "float8-dynamic needs a CUDA device of compute capability 8.9, and this is cpu" in message
    assert "Here run int8, int8-dynamic, float8, int4, int4-rtn, nf4, int3, int2, ternary, int1." in message


@pytest.mark.parametrize(
    ("name", "install"),
    [("int4", "llm-lightning[autoround]"), ("nf4", "llm-lightning[qlora]"), ("int8", "llm-lightning[quantization]")],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, name, install):
    real = importlib.util.find_spec
    missing = schemes.SCHEMES[name].library
    monkeypatch.setattr(schemes.importlib.util, "find_spec", lambda n: None if n == missing else real(n))
    assert install in refused(tmp_path, quantization(name))


def test_patterns_that_fit_nothing_or_everything_are_refused(tmp_path):
    needs("int8")
    message = refused(tmp_path, quantization("int8", high_precision=["lm_head", "*.mlp.up"]))
    assert "'*.mlp.up' fits no linear layer; there are model.layers.0.self_attn.q_proj" in message
    assert "no linear layer is left" in refused(tmp_path, quantization("int8", high_precision=["*"]))


def test_a_head_that_shares_its_weight_with_the_embeddings_has_to_stay(tmp_path):
    needs("int8")
    message = refused(tmp_path, quantization("int8", high_precision=["*.layers.0.*"]))
    assert "lm_head shares its weight with the embeddings" in message


def test_a_head_of_its_own_can_be_quantized(tmp_path):
    needs("int8")
    network = wide_network(tie_word_embeddings=False)
    callback = quantization("int8", high_precision=["*.layers.0.*"])
    fit(tmp_path, callback, WideModule(network))
    quantized = load_network(tmp_path / "model" / "quantized", torch.device("cpu"))
    assert type(quantized.lm_head.weight) is not torch.nn.Parameter


def test_sharded_weights_are_refused(tmp_path):
    needs("int8")
    network = wide_network()
    network.lm_head.weight.ds_id = 0  # as DeepSpeed's ZeRO 3 marks a weight that lies elsewhere
    assert "sharded over ranks" in refused(tmp_path, quantization("int8"), network)


def test_adapters_that_cannot_be_merged_are_refused(tmp_path):
    needs("int8")
    from peft import PromptTuningConfig, TaskType, get_peft_model

    config = PromptTuningConfig(num_virtual_tokens=2, task_type=TaskType.CAUSAL_LM)
    message = refused(tmp_path, quantization("int8"), get_peft_model(wide_network(), config))
    assert "cannot be merged" in message


def test_a_quantized_network_is_not_quantized_again(tmp_path):
    needs("int8")
    fit(tmp_path, quantization("int8"))
    network = load_network(tmp_path / "model" / "quantized", torch.device("cpu"))
    assert "is quantized already" in refused(tmp_path, quantization("int8"), network)


def test_a_run_without_validation_is_refused(tmp_path):
    needs("int8")
    assert "the run has none" in refused(tmp_path, quantization("int8"), limit_val_batches=0)


def test_a_layer_that_a_library_left_is_found():
    network = wide_network()
    with pytest.raises(CallbackError, match=r"int8 left model.layers.1.mlp.up_proj as it was"):
        check_quantized(network, ["model.layers.1.mlp.up_proj"], "int8")
