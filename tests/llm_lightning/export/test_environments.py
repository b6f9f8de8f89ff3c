"""Environments of their own, and what runs in them: `pytest -m slow tests/llm_lightning/export` once they are made."""

import json
import shutil
import subprocess
import zipfile

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig

from llm_lightning.commands.export import run
from llm_lightning.errors import UserError
from llm_lightning.export import environments
from llm_lightning.export.environments import ENVIRONMENTS, folder_of, is_made, python_of
from llm_lightning.export.onnx_genai import OnnxGenai
from llm_lightning.export.onnx_optimum import older_config, write_older
from llm_lightning.export.proof.asking import last_error
from llm_lightning.export.source import read_source
from llm_lightning.export.targets import TARGETS
from llm_lightning.models.tasks import REWARD
from tests.llm_lightning.export.conftest import SIZES, save
from tests.llm_lightning.export.test_export import left_in


@pytest.fixture
def no_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "cache"))


def test_a_missing_environment_is_told_before_any_work(models, no_environments, tmp_path, capsys):
    words = [str(models("llama")), "--to", "onnx-genai", "--output", str(tmp_path / "out")]
    assert run(words) == 2
    assert "llm-lightning export --make onnx-genai" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_environment_of_other_versions_does_not_count(no_environments):
    folder = folder_of("llama.cpp")
    folder.mkdir(parents=True)
    (folder / "made.json").write_text(json.dumps(["xllamacpp==1"]))
    assert not is_made("llama.cpp")
    (folder / "made.json").write_text(json.dumps(ENVIRONMENTS["llama.cpp"]))
    assert is_made("llama.cpp") and python_of("llama.cpp") == folder / "bin" / "python"


@pytest.mark.slow
def test_an_environment_is_made_from_its_packages(no_environments, monkeypatch, tmp_path):
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "NUMBER = 7\n")
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "tiny.py,,\n")
    monkeypatch.setitem(environments.ENVIRONMENTS, "tiny", ["--no-index", str(wheel)])
    environments.make("tiny")
    said = subprocess.run([python_of("tiny"), "-c", "import tiny; print(tiny.NUMBER)"], capture_output=True, text=True)
    assert said.stdout.strip() == "7"
    monkeypatch.setitem(environments.ENVIRONMENTS, "tiny", ["--no-index", "there-is-no-such-package"])
    assert not is_made("tiny")
    with pytest.raises(UserError, match="pip could not install"):
        environments.make("tiny")


def test_an_unknown_environment_is_refused(capsys):
    assert run(["--make", "onnx"]) == 2
    assert "llama.cpp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('Traceback\n  File "x"\nValueError: no\n  such thing\n', "ValueError: no such thing"),
        ("onnx.checker.ValidationError: bad\n0.1 I server: exited\n", "onnx.checker.ValidationError: bad 0.1 I server"),
        ("Killed\n", "Killed"),
        ("", "exit code 9"),
    ],
)
def test_the_error_of_a_failed_process_is_shown_without_its_traceback(said, shown):
    assert last_error(subprocess.CompletedProcess([], 9, "", said)).startswith(shown)
    assert "signal 9" in last_error(subprocess.CompletedProcess([], -9, "", said))


@pytest.mark.slow
@pytest.mark.skipif(not is_made("onnx-genai"), reason="llm-lightning export --make onnx-genai")
def test_onnxruntime_genai_answers_as_the_network(models, tmp_path):
    assert run([str(models("llama")), "--to", "onnx-genai:fp32", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "onnx-genai-fp32" / "export_manifest.json").read_text())["comparison"]
    assert found["kl"] < 1e-8 and found["same_written"] == found["num_written"] == 192


@pytest.mark.slow
@pytest.mark.skipif(not is_made("onnx-genai"), reason="llm-lightning export --make onnx-genai")
def test_what_the_builder_cannot_write_is_told(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TARGETS, "onnx-genai", Breaking())
    assert run([str(models("llama")), "--to", "onnx-genai:fp32", "--output", str(tmp_path / "out")]) == 1
    assert "its builder could not write a llama" in capsys.readouterr().out
    assert left_in(tmp_path / "out") == []


class Breaking(OnnxGenai):
    """Of a folder that lacks its weights."""

    def write(self, source, form, folder):
        empty = folder.with_name("empty")
        empty.mkdir()
        super().write(type(source)(**vars(source) | {"folder": empty}), form, folder)


@pytest.mark.slow
@pytest.mark.skipif(not is_made("llama.cpp"), reason="llm-lightning export --make llama.cpp")
@pytest.mark.parametrize("name", ["llama", "llama, untied, other heads", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_itself_answers_as_the_network(models, tmp_path, name):
    assert run([str(models(name)), "--to", "gguf:f32", "--output", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "gguf-f32" / "export_manifest.json").read_text())
    found = manifest["others"]["llama.cpp"]
    assert found["kl"] < 1e-3 and found["same_ids"] == found["num_texts"] and found["same_chats"] == 4


@pytest.fixture
def by_digits(models, tmp_path):
    """A model whose tokenizer takes each digit by itself."""
    shutil.copytree(models("llama"), tmp_path / "digits")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "digits")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert len(tokenizer(" 2323").input_ids) > len(AutoTokenizer.from_pretrained(models("llama"))(" 2323").input_ids)
    tokenizer.save_pretrained(tmp_path / "digits")
    return tmp_path / "digits"


def test_digits_by_themselves_are_for_llama_cpp_to_prove(by_digits, no_environments, tmp_path, capsys):
    assert run([str(by_digits), "--to", "gguf:f32", "--output", str(tmp_path / "out")]) == 2
    assert "takes each digit by itself" in (said := capsys.readouterr().err) and "--make llama.cpp" in said


@pytest.mark.slow
@pytest.mark.skipif(not is_made("llama.cpp"), reason="llm-lightning export --make llama.cpp")
def test_llama_cpp_takes_each_digit_by_itself(by_digits, tmp_path, capsys):
    assert run([str(by_digits), "--to", "gguf:f32", "--output", str(tmp_path / "out")]) == 0
    assert "texts with digits get other token ids in transformers" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "gguf-f32" / "export_manifest.json").read_text())
    found = manifest["others"]["llama.cpp"]
    assert found["kl"] < 1e-3 and found["same_ids"] == found["num_texts"] and found["same_chats"] == 4


def proven(model, output, *exports):
    assert run([str(model), "--output", str(output), "--text_tokens", "600", "--to", *exports]) == 0
    places = [output / export.replace(":", "-") / "export_manifest.json" for export in exports]
    return [json.loads(place.read_text())["comparison"] for place in places]


@pytest.mark.slow
@pytest.mark.skipif(not is_made("onnx-optimum"), reason="llm-lightning export --make onnx-optimum")
def test_optimum_answers_as_the_network_and_in_8_bits_nearly(models, tmp_path):
    whole, bits = proven(models("llama"), tmp_path / "out", "onnx-optimum:fp32", "onnx-optimum:int8")
    assert whole["kl"] < 1e-8 and whole["same_written"] == whole["num_written"] == 192 and whole["same_chats"] == 4
    assert bits["kl"] > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not is_made("onnx-optimum"), reason="llm-lightning export --make onnx-optimum")
def test_optimum_reads_the_rotary_settings_that_newer_transformers_write(models, tmp_path):
    for name in ("mistral", "qwen2"):
        (found,) = proven(models(name), tmp_path / name, "onnx-optimum:fp32")
        assert found["kl"] < 1e-8 and found["same_ids"] == found["num_texts"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx-optimum", "triton"])
def test_a_reward_model_keeps_its_rewards_elsewhere(tmp_path, target):
    if not is_made(target):
        pytest.skip(f"llm-lightning export --make {target}")
    folder = save(tmp_path / "reward", LlamaConfig(**SIZES), REWARD)
    (found,) = proven(folder, tmp_path / "out", f"{target}:{TARGETS[target].default(read_source(folder))}")
    assert found["max_difference"] < 1e-3 and found["same_ids"] == found["num_texts"]


@pytest.mark.slow
@pytest.mark.skipif(not is_made("triton"), reason="llm-lightning export --make triton")
def test_triton_answers_as_the_network(models, tmp_path):
    whole, half = proven(models("qwen3"), tmp_path / "out", "triton:float32", "triton:bfloat16")
    assert whole["kl"] < 1e-9 and whole["same_written"] == whole["num_written"] == 192 and whole["same_chats"] == 4
    assert half["kl"] > 0


def test_older_transformers_are_told_what_newer_ones_wrote():
    older = older_config({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "hidden_size": 8})
    assert (older["rope_theta"], older["rope_scaling"], older["hidden_size"]) == (5e5, None, 8)
    scaled = {"rope_type": "linear", "factor": 2.0}
    assert older_config({"rope_parameters": {**scaled, "rope_theta": 1e4}})["rope_scaling"] == scaled
    with pytest.raises(UserError, match="Take --to merged"):
        older_config({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})


def test_heads_that_optimum_has_no_place_for_are_refused(models):
    with pytest.raises(UserError, match=r"num_attention_heads = 16, the network's are of 32"):
        TARGETS["onnx-optimum"].check(read_source(models("llama, untied, other heads")), "fp32")


def test_older_transformers_can_read_the_tokenizer_files(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models("llama"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": ["<x>"]}))
    write_older(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<x>"] and "extra_special_tokens" not in settings
