"""The whole chain of the quickstart, small: each stage begins with a folder that one before it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_lightning.__main__ import main
from tests.end_to_end.test_fit import LOGITS_IN_A_CLEAN_PROCESS

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
SMALL = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_steps=8",
         "--trainer.val_check_interval=4", "--data.batch_size=2"]  # fmt: skip
ROWS = ["--data.seq_len=64"]
STAGES = {
    "pretrain": [
        *ROWS, "--data.path=texts.jsonl", "--data.vocab_size=400", "--model.backbone.config.num_hidden_layers=2",
        "--model.backbone.config.hidden_size=64", "--model.backbone.config.intermediate_size=128",
        "--model.backbone.config.num_attention_heads=4", "--model.backbone.config.num_key_value_heads=2",
    ],
    "sft": [*ROWS, "--data.path=pairs.jsonl"],
    "reward": [*ROWS, "--data.path=preferences.jsonl"],
    "dpo": [*ROWS, "--data.path=preferences.jsonl"],
    "ppo": ["--data.path=pairs.jsonl", "--data.batch_size=4", "--model.rollout.sampling.max_new_tokens=8"],
    "compress": [*ROWS, "--data.path=pairs.jsonl"],
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory, texts, cache):
    """Run a stage in the one folder; all before the last have run."""
    pytest.importorskip("torchao", reason="pip install torchao")
    folder = tmp_path_factory.mktemp("chain")
    (folder / "texts.jsonl").write_text(texts)
    pairs = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    preferences = [{"prompt": pair["question"], "chosen": pair["answer"], "rejected": "No."} for pair in pairs]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(each) + "\n" for each in preferences))

    def run(stage, *more):
        return main(["fit", "--config", str(QUICKSTART / f"{stage}.yaml"), *SMALL, *STAGES[stage], *more])

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LLM_LIGHTNING_CACHE", str(cache))
        assert [run(stage) for stage in [*STAGES][:-1]] == [0] * (len(STAGES) - 1)
        yield run


def test_each_stage_goes_on_from_the_one_before_and_the_last_is_small(chain, capfd):
    assert chain("compress") == 0, capfd.readouterr().err
    output = capfd.readouterr().out
    root = Path("runs/quickstart-compress")
    report = json.loads((root / "quantization.json").read_text())
    assert report["kept"] in ("int8", "int8-dynamic"), output
    folder = root / "model" / "quantized"
    config = json.loads((folder / "config.json").read_text())
    assert config["intermediate_size"] == 96 and config["quantization_config"]["quant_method"] == "torchao"
    assert "Kept: int8" in output and not list(root.glob("**/adapter_config.json"))

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOGITS_IN_A_CLEAN_PROCESS, str(folder), "clean.pt"]
    clean = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr
    from transformers import AutoModelForCausalLM

    saved = torch.load("clean.pt")
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(saved["ids"]).logits, saved["logits"])


def test_an_adapter_is_merged_before_it_is_quantized(chain, capfd):
    """Without pruning, `model/last` is an adapter folder, and what is quantized the whole network."""
    callbacks = [{"class_path": "Quantization", "init_args": {"schemes": ["int8"]}}]
    root = Path("runs/unpruned")
    settings = [f"--trainer.callbacks={json.dumps(callbacks)}", f"--trainer.default_root_dir={root}"]
    assert chain("compress", *settings) == 0, capfd.readouterr().err
    assert (root / "model" / "last" / "adapter_config.json").exists()
    from transformers import AutoModelForCausalLM

    from llm_lightning.models.backbone import Backbone

    quantized = AutoModelForCausalLM.from_pretrained(root / "model" / "quantized")
    merged = Backbone(path=str(root / "model" / "last")).build()
    before = AutoModelForCausalLM.from_pretrained("runs/quickstart-sft/model/best")
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        ours, theirs, base = (x.get_submodule(f"model.layers.1.{layer}").weight for x in (quantized, merged, before))
        error = (ours.dequantize() - theirs).norm()
        assert error < 0.01 * theirs.norm() < 1 and error < 0.3 * (base - theirs).norm()
