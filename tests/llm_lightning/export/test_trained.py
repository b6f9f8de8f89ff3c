"""What training leaves behind, exported to every target that holds it: minutes, so `pytest -m slow` only."""

import json

import pytest

from benchmarks.trained_exports import main
from llm_lightning.export.environments import ENVIRONMENTS, is_made


@pytest.mark.slow
def test_an_adapter_a_pruned_network_and_a_reward_model_are_exported(models, tmp_path):
    words = [str(models("llama")), str(tmp_path / "out"), "--steps", "5", "--seq_len", "128"]
    assert main(words) == 0
    apart = {name for name in ENVIRONMENTS if is_made(name)}
    for name in ("as-it-was", "lora", "pruned", "reward"):
        there = {path.name.rpartition("-")[0]: path for path in (tmp_path / "out" / name / "exports").iterdir()}
        expected = {"merged"} | ({"onnx-optimum", "triton"} & apart)
        if name != "reward":
            expected |= {"gguf"} | ({"onnx-genai"} & apart)
        assert set(there) == expected, name
        for path in there.values():
            found = json.loads((path / "export_manifest.json").read_text())["comparison"]
            assert found["same_ids"] == found["num_texts"]
            assert found["max_difference"] < 1e-2
