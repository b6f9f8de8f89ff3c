"""A Triton model repository: what is in it, and what the server that runs it answers under load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_lightning.export.environments import is_made
from llm_lightning.export.source import read_source
from llm_lightning.export.targets import TARGETS

ROOT = Path(__file__).parents[3]
TRITON = TARGETS["triton"]


def test_a_repository_holds_the_model_and_what_serves_it(models, tmp_path):
    TRITON.write(read_source(models("llama")), "bfloat16", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Dockerfile", "client.py", "compose.yaml", "models", "requirements.txt",
    ]  # fmt: skip
    model = tmp_path / "models" / "language_model"
    there = {path.name for path in (model / "1").iterdir()}
    assert {"model.py", "prompts.py", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= there
    assert json.loads((model / "1" / "config.json").read_text())["dtype"] == "bfloat16"
    needed = (tmp_path / "requirements.txt").read_text().split()
    assert [each.partition("=")[0] for each in needed] == ["torch", "transformers", "numpy"]
    asked = TRITON.questions(tmp_path)
    assert asked == {"repository": str(tmp_path / "models"), "model": "language_model", "num_positions": 256}


def test_all_inputs_that_are_read_are_in_the_configuration_and_none_else():
    folder = ROOT / "llm_lightning" / "export" / "triton" / "repository"
    for part in ("generator", "scorer"):
        code = (folder / f"{part}.py").read_text() + (folder / "prompts.py").read_text()
        inputs = [
            line.split('"')[1] for line in (folder / f"{part}.pbtxt").read_text().splitlines() if line[:5] == "input"
        ]
        assert len(inputs) >= 4
        assert not [name for name in inputs if f'"{name}"' not in code]


@pytest.mark.slow
@pytest.mark.skipif(not is_made("triton"), reason="llm-lightning export --make triton")
def test_a_thousand_requests_of_eight_clients_are_answered_as_single_ones_are(models, tmp_path):
    place = tmp_path / "export"
    place.mkdir()
    TRITON.write(read_source(models("llama")), "float32", place)
    command = [sys.executable, ROOT / "benchmarks" / "triton_load.py", place, "--json", tmp_path / "found.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.jsonl").read_text())
    assert found["answered"] == found["equal"] == found["requests"] == 1000
    assert found["equal_again"] == found["asked_again"] == 40
    assert found["mean_batch"] > 1.5
