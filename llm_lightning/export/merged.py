"""The whole network in one dtype, as a folder that transformers, vLLM and SGLang load."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm import tqdm

from llm_lightning.errors import UserError
from llm_lightning.export.proof.limits import EXACT, HALF, Limits
from llm_lightning.export.source import Source
from llm_lightning.export.target import Target
from llm_lightning.models.export import FILE_SIZE
from llm_lightning.models.loading.weights import described_weights, opened_weights
from llm_lightning_safety.files import follow_umask

FLOATS = {"F64", "F32", "F16", "BF16"}
OTHERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken")
NOT_COPIED = ("config.json", "model.safetensors.index.json", "export_manifest.json", "trainer_state.json")


class Merged(Target):
    """transformers' own format. Weights are read and written one file at a time."""

    formats: Mapping[str, Limits] = {"float32": EXACT, "bfloat16": HALF, "float16": HALF}
    script = "transformers_answers"

    def default(self, source: Source) -> str:
        """The model's own dtype."""
        return source.dtype if source.dtype in self.formats else "float32"

    def check(self, source: Source, form: str) -> None:
        """Whatever transformers loads, it can hold."""

    def write(self, source: Source, form: str, folder: Path) -> None:
        """Config, tokenizer, generation config and sharded safetensors."""
        for file in sorted(source.folder.iterdir()):
            if file.suffix in COPIED and file.name not in NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        (folder / "config.json").write_text(json.dumps(config | {"dtype": form}, indent=2, sort_keys=True) + "\n")
        write_weights(source.folder, getattr(torch, form), folder)
        follow_umask(folder)

    def questions(self, folder: Path) -> dict[str, Any]:
        """Where it lies."""
        return {"path": str(folder), "base": None}

    def python(self) -> str:
        """Ours, which has transformers."""
        return sys.executable


def write_weights(source: Path, dtype: torch.dtype, folder: Path) -> None:
    """The weights of a model folder in another one, floats in `dtype`; no more than one file of them is in memory."""
    described = described_weights(source)
    plan = split_torch_state_dict_into_shards(
        {
            name: torch.empty(shape, dtype=dtype if kind in FLOATS else OTHERS[kind], device="meta")
            for name, (shape, kind) in described.items()
        },
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=FILE_SIZE,
    )
    with opened_weights(source) as (get, _), tqdm(total=len(described), unit="weight", disable=None) as bar:
        for file, names in plan.filename_to_tensors.items():
            content = {}
            for name in names:
                weight = get(name)
                content[name] = in_dtype(name, weight, dtype) if weight.is_floating_point() else weight
                bar.update()
            save_file(content, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def in_dtype(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in a dtype; raises `UserError` where it is too large for it."""
    cast = weight.to(dtype)
    if not cast.isfinite().all():
        reason = (
            "is not finite" if not weight.isfinite().all() else f"holds {weight.abs().max():.3g}, too large for {dtype}"
        )
        raise UserError(f"The weight {name} {reason}. Take bfloat16 or float32, or look for what broke the training.")
    return cast
