"""Configurations by name, wherever the command is started."""

from pathlib import Path

import pytest
import yaml

from llm_lightning.__main__ import main
from llm_lightning.commands.configs import run
from llm_lightning.errors import UserError
from llm_lightning.settings.shipped import find_config, names, with_found_configs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_file_has_a_name_and_says_in_its_first_line_what_it_is(capsys):
    settings = [path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml") if path.parent.name != "tasks"]
    assert sorted(names()) == sorted(str(path.with_suffix("")) for path in settings)
    assert run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names())
    for name, line in zip(names(), lines, strict=True):
        said = line.removeprefix(name)
        assert said.startswith(" ") and said.strip()[-1] in ".'", line


@pytest.mark.parametrize("given", ["peft/lora", "configs/peft/lora.yaml", "peft/lora.yaml", "configs/peft/lora"])
def test_a_name_with_or_without_folder_and_ending_is_found(given):
    assert Path(find_config(given)).read_text() == (CONFIGS / "peft" / "lora.yaml").read_text()


def test_a_file_on_disk_comes_before_a_name_of_the_package():
    Path("configs").mkdir()
    Path("configs/sft.yaml").write_text("trainer: {max_steps: 3}\n")
    assert find_config("configs/sft.yaml") == "configs/sft.yaml"
    assert find_config("sft") != "configs/sft.yaml"


def test_each_config_flag_of_a_command_line_is_found_and_nothing_else_is_touched():
    given = ["fit", "--config", "sft", "--config=peft/lora", "-c", "grpo", "--data.path", "sft", "--config={a: 1}"]
    found = with_found_configs(given)
    assert [Path(value.removeprefix("--config=")).stem for value in (found[2], found[3], found[5])] == [
        "sft", "lora", "grpo",
    ]  # fmt: skip
    assert [found[i] for i in (0, 1, 4, 6, 7, 8)] == [given[i] for i in (0, 1, 4, 6, 7, 8)]


@pytest.mark.parametrize(("given", "near"), [("peft/lorra", "peft/lora"), ("pretraining", "pretrain"), ("../sft", "")])
def test_what_is_neither_file_nor_name_is_refused_with_what_is_near(given, near):
    with pytest.raises(UserError, match=r"(?s)no such file.*llm-lightning configs") as caught:
        find_config(given)
    assert given in str(caught.value) and near in str(caught.value)


def test_the_command_line_takes_names_in_any_folder(capsys):
    assert main(["fit", "--config", "sft", "--config", "peft/lora", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out.partition("\n")[2])
    assert config["model"]["init_args"]["peft"]["class_path"] == "peft.LoraConfig"
    assert main(["fit", "--config", "peft/lorra"]) == 2
    assert "peft/lora" in capsys.readouterr().err


def test_files_are_printed_and_copied_but_never_over_others(capsys):
    assert run(["peft/lora"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load((CONFIGS / "peft" / "lora.yaml").read_text())
    assert run(["peft/lora", "sft", "--copy", "mine"]) == 0
    assert Path("mine/sft.yaml").read_text() == (CONFIGS / "sft.yaml").read_text()
    Path("mine/sft.yaml").write_text("changed")
    assert run(["--copy", "mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert Path("mine/sft.yaml").read_text() == "changed" and not Path("mine/grpo.yaml").exists()
    assert run(["--copy", "all"]) == 0
    assert len(list(Path("all").rglob("*.yaml"))) == len(names())
    assert run(["nothing"]) == 2
    assert run(["--nothing"]) == 2
