"""What is installed from a wheel works without the clone."""

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The command of an environment that has the wheel, and of this one's packages all but the project itself."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*_cache")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True)
    environment = _without_this_project()
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    wheel = next(folder.glob("llm_lightning-*.whl"))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True, env=environment)
    own = next((folder / "env" / "lib").glob("python*/site-packages"))
    # A line of a .pth file adds a folder, and not what that folder's own .pth files add: an editable install stays out.
    (own / "dependencies.pth").write_text("\n".join([*site.getsitepackages(), ""]))
    shutil.rmtree(source)
    return folder / "env" / "bin" / "llm-lightning"


def _without_this_project() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(installed: Path, folder: Path, *args: str) -> str:
    environment = _without_this_project() | {"LLM_LIGHTNING_CACHE": str(folder)}
    done = subprocess.run([installed, *args], cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_all_packages_and_finds_its_configurations(installed, tmp_path):
    place = subprocess.run(
        [installed.parent / "python", "-c", "import llm_lightning; print(llm_lightning.__file__)"],
        cwd=tmp_path, text=True, capture_output=True, check=True, env=_without_this_project(),
    ).stdout  # fmt: skip
    assert str(installed.parents[1]) in place
    assert "peft/lora" in _run(installed, tmp_path, "configs")
    settings = yaml.safe_load(_run(installed, tmp_path, "fit", "--config", "sft", "--print_config"))
    assert settings["data"]["class_path"].endswith("InstructionDataModule")
    own = next((installed.parents[1] / "lib").glob("python*/site-packages"))
    for package in ("llm_lightning", "callbacks", "datamodules"):
        for file in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.jinja")]:
            assert (own / file.relative_to(ROOT)).exists(), file
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2\n2,1\n")
    assert "Report: report.html" in _run(installed, tmp_path, "report", ".")


@pytest.mark.slow
def test_the_quickstart_and_preview_run_from_a_wheel(installed, tmp_path):
    _run(installed, tmp_path, "fit", "--config", "quickstart/pretrain")
    assert (tmp_path / "runs" / "quickstart-pretrain" / "model" / "best" / "model.safetensors").exists()
    assert "<|im_start|>" in _run(installed, tmp_path, "preview", "--config", "quickstart/sft")
