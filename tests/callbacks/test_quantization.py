import copy
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from callbacks import CallbackError, GracefulStop, Quantization
from callbacks.quantization import SCHEMES, Calibration
from callbacks.quantization.layers import linear_layers
from callbacks.quantization.request import load_network
from tests.callbacks.quantized import (
    IDS,
    ON_CPU,
    TEMPLATES,
    WideModule,
    effective_weights,
    fit,
    needs,
    quantization,
    wide_network,
)
from tests.callbacks.tiny_llama import Rows, TinyData, tiny_trainer

CLEAN = """
import sys, torch
from transformers import AutoModelForCausalLM
logits = {}
with torch.no_grad():
    for folder in sys.argv[2:]:
        logits[folder] = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.arange(3, 67)[None]).logits
assert not {"callbacks", "llm_lightning"} & set(sys.modules)
torch.save(logits, sys.argv[1])
"""


@pytest.fixture(scope="module")
def network():
    """Half of its weights are zero."""
    torch.manual_seed(0)
    network = wide_network()
    network.generation_config = GenerationConfig(eos_token_id=[2, 5], do_sample=True, temperature=0.7)
    with torch.no_grad():
        for name, layer in linear_layers(network).items():
            if name != "lm_head":
                layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
    return network


@pytest.fixture(scope="module")
def runs(network, tmp_path_factory):
    """Of each scheme whose library is here, the run folder of a fit that ended with it, and changed no weight."""
    made = {}

    def run(name):
        needs(name)
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            fit(made[name], quantization(name), WideModule(copy.deepcopy(network), learning_rate=0.0))
        return made[name]

    return run


@pytest.fixture(scope="module")
def clean_logits(runs, tmp_path_factory):
    """The logits of all the folders, loaded by transformers alone in one process without this project."""
    folders = []
    for name in ON_CPU:
        try:
            folders.append(str(runs(name) / "model" / "quantized"))
        except pytest.skip.Exception:
            continue
    out = tmp_path_factory.mktemp("clean") / "logits.pt"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(out), *folders],
        cwd=out.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_folder_loads_in_a_clean_process_to_the_logits_that_were_measured(runs, clean_logits, name):
    folder = runs(name) / "model" / "quantized"
    with torch.no_grad():
        measured = load_network(folder, torch.device("cpu")).eval()(IDS).logits
    assert torch.equal(clean_logits[str(folder)], measured)


@pytest.mark.parametrize("name", ON_CPU)
def test_each_scheme_is_reported(runs, name):
    root = runs(name)
    report = json.loads((root / "quantization.json").read_text())
    manifest = json.loads((root / "model" / "quantized" / "quantization_manifest.json").read_text())
    assert report["kept"] == name and manifest["scheme"] == name
    figures = report["schemes"][name]
    assert figures == manifest["quantized"]
    assert figures["num_tokens"] == 4 * 15
    assert figures["kl"] > 0 and 0 <= figures["top_token_agreement"] <= 1
    rows = {"source": "training data of TinyData", "path": "None", "num_rows": 4, "tokens_per_row": 16, "seed": 0}
    assert manifest["calibration"] == (rows if SCHEMES[name].calibrated else None)
    assert figures["memory_bytes"] < report["original"]["memory_bytes"]
    assert manifest["layers"]["quantized"] == 14 and manifest["layers"]["kept"] == ["lm_head"]
    assert (root / "quantization.png").stat().st_size > 10_000
    assert not (root / "model" / ".quantizing").exists()


@pytest.mark.parametrize("name", ON_CPU)
def test_the_folder_generates_by_the_settings_of_the_original(runs, name):
    settings = GenerationConfig.from_pretrained(runs(name) / "model" / "quantized")
    assert (settings.eos_token_id, settings.do_sample, settings.temperature) == ([2, 5], True, 0.7)


@pytest.mark.parametrize("name", ON_CPU)
def test_who_may_read_the_config_may_read_the_weights(runs, name):
    folder = runs(name) / "model" / "quantized"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.stat().st_mode for file in files} == {(folder / "config.json").stat().st_mode}


@pytest.mark.parametrize("name", ON_CPU)
def test_the_tokenizer_keeps_its_templates(runs, name):
    assert AutoTokenizer.from_pretrained(runs(name) / "model" / "quantized").chat_template == TEMPLATES


@pytest.mark.parametrize("name", ON_CPU)
def test_zeros_stay_zero(runs, network, name):
    for weight, original in effective_weights(runs(name) / "model" / "quantized", network).values():
        assert (weight[original == 0] == 0).all()
        assert (weight[original != 0] != 0).float().mean() > 0.3


def rows_to_nearest(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale


def groups_to_nearest(weight, size=64):
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return (((groups / scale).round() + zero).clamp(0, 15) - zero).mul(scale).flatten(1)


def signs(weight, size=64):
    groups = weight.unflatten(1, (-1, size))
    magnitude = groups.abs().sum(-1, keepdim=True) / (groups != 0).sum(-1, keepdim=True)
    return (groups.sign() * magnitude).flatten(1)


@pytest.mark.parametrize(
    ("name", "formula", "rtol"),
    [("int8", rows_to_nearest, 1e-3), ("int4-rtn", groups_to_nearest, 1e-2), ("int1", signs, 1e-3)],
)
def test_weights_are_those_of_the_formula(runs, network, name, formula, rtol):
    """In float64. Weights near the middle of two levels may go the other way: AutoRound reads them in bfloat16."""
    for weight, original in effective_weights(runs(name) / "model" / "quantized", network).values():
        expected = formula(original.double())
        same = torch.isclose(weight.double(), expected, rtol=rtol, atol=1e-5)
        assert same.float().mean() > 0.98, (weight, expected)


def test_the_budget_keeps_the_smallest_that_holds_and_refuses_the_others(tmp_path, capsys):
    needs("int8")
    callback = quantization("int8", "int1", max_perplexity_increase="5%")
    fit(tmp_path, callback, max_steps=80)
    report = json.loads((tmp_path / "quantization.json").read_text())
    original, int8, int1 = report["original"], report["schemes"]["int8"], report["schemes"]["int1"]
    assert original["perplexity"] < 3 and int8["perplexity"] < 1.05 * original["perplexity"]
    assert int1["perplexity"] > 1.3 * original["perplexity"]
    assert report["kept"] == "int8" and callback.kept.name == "int8"
    manifest = json.loads((tmp_path / "model" / "quantized" / "quantization_manifest.json").read_text())
    assert manifest["scheme"] == "int8"
    output = capsys.readouterr().out
    assert "int1: refused, perplexity +" in output and "Kept: int8, in" in output


@pytest.mark.slow
def test_learned_rounding_is_nearer_to_the_original_than_the_nearest_level(tmp_path):
    needs("int4")
    callback = Quantization(
        ["int4", "int4-rtn"],
        max_megabytes=1e3,
        num_batches=2,
        calibration=Calibration(8),
        options={"int4": {"iters": 60}},
    )
    fit(tmp_path, callback, max_steps=80, num_rows=8)
    figures = json.loads((tmp_path / "quantization.json").read_text())["schemes"]
    assert figures["int4"]["kl"] < 0.8 * figures["int4-rtn"]["kl"]


def test_where_none_holds_the_original_stays_and_nothing_else(tmp_path, capsys):
    needs("int1")
    (tmp_path / "model" / "quantized").mkdir(parents=True)  # of an earlier run
    callback = quantization("int1", max_perplexity_increase=0.01)
    module = fit(tmp_path, callback, max_steps=80)
    assert callback.kept is None and json.loads((tmp_path / "quantization.json").read_text())["kept"] is None
    assert not (tmp_path / "model" / "quantized").exists()
    assert "No scheme holds the budget: the network stays unquantized." in capsys.readouterr().out
    assert all(type(layer.weight) is torch.nn.Parameter for layer in linear_layers(module.model).values())


def test_the_original_weights_and_the_random_state_stay_as_they_are(tmp_path):
    needs("int8")
    trainer = tiny_trainer(tmp_path, max_steps=2)
    torch.manual_seed(0)
    expected = WideModule()
    trainer.fit(expected, TinyData(num_rows=4))
    state = torch.get_rng_state()
    module = fit(tmp_path, quantization("int8"))
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], weight)


def test_layers_by_pattern_stay_in_high_precision(tmp_path):
    needs("int8")
    module = fit(tmp_path, quantization("int8", high_precision=["lm_head", "*.layers.0.*"]))
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "quantized")
    for name, layer in linear_layers(module.model).items():
        weight = quantized.get_submodule(name).weight
        kept = name == "lm_head" or ".layers.0." in name
        assert (type(weight) is torch.nn.Parameter) == kept
        assert not kept or torch.equal(weight, layer.weight)


def test_what_stays_can_have_another_dtype(tmp_path):
    needs("int8")
    fit(tmp_path / "float32", quantization("int8"))
    fit(tmp_path / "bfloat16", quantization("int8", dtype="bfloat16"))
    networks = [load_network(tmp_path / name / "model" / "quantized", torch.device("cpu")) for name in
                ("float32", "bfloat16")]  # fmt: skip
    assert [network.model.embed_tokens.weight.dtype for network in networks] == [torch.float32, torch.bfloat16]


def test_calibration_is_on_the_runs_rows_by_seed(tmp_path):
    def rows(calibration):
        trainer = tiny_trainer(tmp_path, max_steps=1)
        trainer.fit(WideModule(), TinyData(num_rows=40))
        return [tuple(row.tolist()) for row in calibration.rows(trainer)]

    known = {tuple(row["input_ids"].tolist()) for row in map(Rows(40).__getitem__, range(40))}
    first, again, other = (rows(Calibration(num_rows=8, seed=seed)) for seed in (0, 0, 1))
    assert len(set(first)) == 8 and set(first) <= known
    assert first == again and set(first) != set(other)
    assert set(rows(Calibration(num_rows=1000))) == known


def test_a_stopped_run_is_not_quantized(tmp_path, capsys):
    needs("int8")

    class Stop(GracefulStop):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = tiny_trainer(tmp_path, callbacks=[quantization("int8"), Stop()], enable_checkpointing=True)
    trainer.fit(WideModule(), TinyData())
    assert trainer.global_step == 1 and not (tmp_path / "model" / "quantized").exists()
    assert "not quantized" not in capsys.readouterr().err


def test_nothing_is_left_by_a_rehearsal(tmp_path):
    needs("int8")
    fit(tmp_path, quantization("int8"), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_nobody_can_merge_is_refused(tmp_path):
    needs("int8")
    from peft import LoraConfig, get_peft_model

    module = WideModule(get_peft_model(wide_network(), LoraConfig(target_modules=["q_proj"])))
    with pytest.raises(CallbackError, match="merge_adapter"):
        fit(tmp_path, quantization("int8"), module)


def test_table_and_picture_reach_wandb(tmp_path):
    needs("int8")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=tmp_path, offline=True)
    fit(tmp_path, Quantization(["int8"], num_batches=1), logger=logger)
    logger.experiment.finish()
    media = {path.suffix for path in tmp_path.glob("wandb/*/files/media/**/*") if path.is_file()}
    assert media == {".json", ".png"}
