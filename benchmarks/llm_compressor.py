"""Pruning and 4-bit rounding by llm-compressor, in its own environment: python -m benchmarks.llm_compressor JOB.json"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import WandaPruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from transformers import AutoModelForCausalLM

PRUNING = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def recipe(job: dict[str, Any]) -> Any:
    """What is to be done: `gptq` by `group_size`, the others by `sparsity` and `mask`."""
    if job["method"] == "gptq":
        weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group"}
        weights["group_size"] = job["group_size"]
        return GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
    return PRUNING[job["method"]](
        sparsity=job["sparsity"], mask_structure=job["mask"], targets=["Linear"], ignore=["re:.*lm_head"]
    )


def main(path: str) -> int:
    job = json.loads(Path(path).read_text())
    network = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    rows = json.loads(Path(job["rows"]).read_text())
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=network, dataset=data, recipe=recipe(job), num_calibration_samples=len(rows), max_seq_length=len(rows[0])
    )
    # As plain numbers, rounded ones too: its own format would need its loader.
    names = [name for name in network.state_dict() if not name.endswith(("_scale", "_zero_point", "_g_idx"))]
    state = {name: network.state_dict()[name].float().contiguous() for name in names}
    torch.save(state, Path(job["result"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
