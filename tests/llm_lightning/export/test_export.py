"""The command: what it writes, keeps, refuses, and leaves behind."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_lightning.commands.export import run
from llm_lightning.export import exporting, merged
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.tasks import REWARD
from tests.llm_lightning.export.conftest import SIZES, save, trained_tokenizer
from tests.llm_lightning.models.peft_methods import METHODS, disturb


@pytest.fixture(autouse=True)
def no_environments(tmp_path, monkeypatch):
    """What is installed on a machine does not decide what is tested."""
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "cache"))


def exported(folder, output, *words):
    return run([str(folder), "--output", str(output), "--text_tokens", "300", "--to", *words])


def left_in(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def adapter(models, tmp_path_factory):
    adapted = Adapter(Backbone(path=str(models("llama"))).build(), METHODS["lora"]())
    disturb(adapted.model)
    folder = tmp_path_factory.mktemp("adapter")
    save_model_folder(adapted.model, trained_tokenizer(), folder, adapter=adapted)
    return folder


def test_an_adapter_is_merged_and_proven_against_itself_on_its_base(adapter, tmp_path, capsys):
    output = tmp_path / "out"
    assert exported(adapter, output, "merged:float32", "gguf:f32") == 0
    assert left_in(output) == ["gguf-f32", "merged-float32"]
    for name in left_in(output):
        manifest = json.loads((output / name / "export_manifest.json").read_text())
        found = manifest["comparison"]
        assert found["kl"] < 1e-8 and found["same_ids"] == found["num_texts"] and found["same_chats"] == 4
        assert manifest["bytes"] == sum(manifest["files"].values())
    printed = capsys.readouterr().out
    assert "gguf-f32" in printed and "perplexity" in printed
    # again: nothing has to be asked
    before = (output / "gguf-f32" / "export_manifest.json").stat().st_mtime_ns
    assert exported(adapter, output, "merged:float32", "gguf:f32") == 0
    assert capsys.readouterr().out.count("there already, and proven") == 2
    assert (output / "gguf-f32" / "export_manifest.json").stat().st_mtime_ns == before
    # a file that is cut short is no proven export, and is not replaced in silence
    (output / "gguf-f32" / "model-f32.gguf").write_bytes(b"GGUF")
    assert exported(adapter, output, "gguf:f32") == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_folders_are_those_of_where_the_command_is_given(models, tmp_path, monkeypatch):
    shutil.copytree(models("llama"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert exported("model", "out", "merged") == 0
    assert left_in(tmp_path / "out") == ["merged-float32"]


def test_a_refused_export_leaves_nothing_and_the_others_stay(models, tmp_path, capsys, monkeypatch, ask_here):
    monkeypatch.setattr(exporting, "ask", ask_here)
    output = tmp_path / "out"
    assert exported(models("llama"), output, "gguf:q8_0", "merged", "--max_kl", "1e-9") == 1
    assert left_in(output) == ["merged-float32"]
    printed = capsys.readouterr().out
    assert "gguf-q8_0 was refused, and nothing is left of it: KL by" in printed and "max_kl 1e-09" in printed


def test_a_reward_model_keeps_its_rewards(tmp_path, capsys, monkeypatch, ask_here):
    monkeypatch.setattr(exporting, "ask", ask_here)
    folder = save(tmp_path / "reward", LlamaConfig(**SIZES), REWARD)
    assert exported(folder, tmp_path / "out", "merged:bfloat16") == 0
    found = json.loads((tmp_path / "out" / "merged-bfloat16" / "export_manifest.json").read_text())["comparison"]
    assert 0 < found["max_difference"] < 1
    assert exported(folder, tmp_path / "out", "gguf") == 2
    assert "reward model" in capsys.readouterr().err


def test_nothing_of_someone_elses_is_replaced(models, tmp_path, capsys):
    place = tmp_path / "out" / "merged-float32"
    place.mkdir(parents=True)
    (place / "letter.txt").write_text("mine")
    assert exported(models("llama"), tmp_path / "out", "merged") == 2
    assert "something else" in capsys.readouterr().err and (place / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "merged"], "--output"),
        (["--to", "merged", "--output", "out", "--text", "missing.txt"], "missing.txt"),
        (["--to", "merged", "--output", "out", "--text_tokens", "1"], "--text_tokens 1"),
        (["--to", "merged", "--output", "out", "--max_perplexity_increase", "-0.1"], "-0.1"),
    ],
)
def test_mistakes_are_told_before_any_work(models, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert run([str(models("llama")), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_runs_folder_leads_to_its_model(models, tmp_path, capsys):
    shutil.copytree(models("llama"), tmp_path / "run" / "model" / "best")
    assert exported(tmp_path / "run", tmp_path / "out", "merged") == 2
    assert f"Do you mean {tmp_path / 'run' / 'model' / 'best'}?" in capsys.readouterr().err


def test_weights_are_written_file_by_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "FILE_SIZE", 40_000)
    merged.write_weights(models("llama"), torch.bfloat16, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and (tmp_path / "model.safetensors.index.json").is_file()
    shutil.copyfile(models("llama") / "config.json", tmp_path / "config.json")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    own = AutoModelForCausalLM.from_pretrained(models("llama"), dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in own.items())
