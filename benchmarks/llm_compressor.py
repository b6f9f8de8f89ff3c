"""One-shot pruning by llm-compressor, in its own environment: python -m benchmarks.llm_compressor JOB.json"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from transformers import AutoModelForCausalLM

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def main(path: str) -> int:
    job = json.loads(Path(path).read_text())
    network = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    rows = json.loads(Path(job["rows"]).read_text())
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    recipe = MODIFIERS[job["method"]](
        sparsity=job["sparsity"], mask_structure=job["mask"], targets=["Linear"], ignore=["re:.*lm_head"]
    )
    oneshot(model=network, dataset=data, recipe=recipe, num_calibration_samples=len(rows), max_seq_length=len(rows[0]))
    # As a plain folder: its own format would need its loader.
    state = {name: tensor.float().contiguous() for name, tensor in network.state_dict().items()}
    torch.save(state, Path(job["result"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
