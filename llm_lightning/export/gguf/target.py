"""A network with its tokenizer as one .gguf file."""

import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llm_lightning.errors import UserError
from llm_lightning.export.environments import is_made, python_of
from llm_lightning.export.gguf.network import add_settings, architecture_of, laid_out, tensor_names
from llm_lightning.export.gguf.tokenizer import DIGITS, add_tokenizer, describe
from llm_lightning.export.proof.asking import OtherEngine
from llm_lightning.export.proof.limits import EIGHT_BITS, EXACT, HALF, Limits
from llm_lightning.export.proof.questions import DECOMPOSED, TEXTS
from llm_lightning.export.source import Source
from llm_lightning.export.target import Target
from llm_lightning.models.loading.weights import described_weights, opened_weights

LLAMA_CPP = "llama.cpp"
MOST_POSITIONS = 1024
"""Of llama.cpp's cache: the questions are no longer."""

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


class Gguf(Target):
    """llama.cpp's format, by the gguf package's writer. One weight is in memory at a time."""

    formats: Mapping[str, Limits] = {"f16": HALF, "bf16": HALF, "q8_0": EIGHT_BITS, "f32": EXACT}
    script = "transformers_answers"

    def default(self, source: Source) -> str:
        """Half precision, which every program that reads .gguf knows."""
        return "f16"

    def check(self, source: Source, form: str) -> None:
        """Raises `UserError` for what the file could not say."""
        if importlib.util.find_spec("gguf") is None:
            raise UserError("--to gguf needs the gguf package: pip install 'llm-lightning[gguf]'.")
        if source.is_reward_model:
            raise UserError("--to gguf: the file has no place for a reward model's head. Take --to merged.")
        architecture_of(source.config)
        described = describe(source.tokenizer, source.config.vocab_size)
        if described.split == DIGITS and not is_made(LLAMA_CPP):
            raise UserError(
                "--to gguf: the tokenizer takes each digit by itself, which llama.cpp does and transformers' reader of "
                "such files does not, so that llama.cpp has to prove it: make its environment once, by `llm-lightning "
                f"export --make {LLAMA_CPP}`."
            )

    def write(self, source: Source, form: str, folder: Path) -> None:
        """One file; see `check` for what is raised."""
        from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

        config, architecture = source.config, architecture_of(source.config)
        writer = GGUFWriter(folder / self.file(form), architecture.name)
        writer.add_type("model")
        writer.add_name(source.given.resolve().name)
        writer.add_file_type(LlamaFileType[FILE_TYPES[form]])
        writer.add_quantization_version(2)
        add_settings(writer, config)
        add_tokenizer(writer, source.tokenizer, describe(source.tokenizer, config.vocab_size))
        described = described_weights(source.folder)
        names = tensor_names(architecture, config, sorted(described))
        kinds = {name: GGMLQuantizationType[_kind(form, described[name][0])] for name in names}
        for name, written in names.items():
            shape = described[name][0]
            writer.add_tensor_info(written, shape, _numpy_float(), _num_bytes(kinds[name], shape), kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        try:
            with opened_weights(source.folder) as (get, _), tqdm(total=len(names), unit="weight", disable=None) as bar:
                for name, written in names.items():
                    weight = laid_out(architecture, config, written, get(name).to(torch.float32))
                    writer.write_tensor_data(_packed(name, weight, kinds[name]))
                    bar.update()
        finally:
            writer.close()

    def others(self, source: Source, folder: Path) -> list[OtherEngine]:
        """llama.cpp itself, where its environment was made."""
        if not is_made(LLAMA_CPP):
            return []
        positions = min(source.config.max_position_embeddings, MOST_POSITIONS)
        asked = self.questions(folder) | {"num_positions": positions}
        normalizes = describe(source.tokenizer, source.config.vocab_size).normalizes
        may_differ = (DECOMPOSED,) if normalizes else ()
        return [OtherEngine(LLAMA_CPP, "llama_cpp_answers", asked, python_of(LLAMA_CPP), may_differ)]

    def file(self, form: str) -> str:
        """Its name in the folder."""
        return f"model-{form}.gguf"

    def unsaid(self, source: Source) -> dict[str, str]:
        """llama.cpp splits texts as they are; tokenizers of the Qwen family compose accents first. And transformers,
        which is asked first, does not read that digits stand by themselves.
        """
        described = describe(source.tokenizer, source.config.vocab_size)
        if described.normalizes:
            return {DECOMPOSED: "texts that are not in Unicode's NFC get other token ids: the file cannot ask for it"}
        if described.split == DIGITS:
            words = "texts with digits get other token ids in transformers, which cannot read how the file splits them"
            return {text: words for text in TEXTS if any(character.isnumeric() for character in text)}
        return {}

    def questions(self, folder: Path) -> dict[str, Any]:
        """Which file."""
        return {"path": str(next(folder.glob("*.gguf"))), "base": None}

    def python(self) -> str:
        """Ours: transformers reads .gguf files, by code of its own."""
        return sys.executable


def _kind(form: str, shape: tuple[int, ...]) -> str:
    """As llama.cpp does: vectors stay in float32, and rows that are no whole blocks are written in half precision."""
    if len(shape) < 2:
        return "F32"
    return "F16" if form == "q8_0" and shape[-1] % 32 else KINDS[form]


def _num_bytes(kind: Any, shape: tuple[int, ...]) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def _numpy_float() -> Any:
    import numpy as np

    return np.dtype(np.float32)


def _packed(name: str, weight: torch.Tensor, kind: Any) -> Any:
    from gguf import GGMLQuantizationType, quantize

    if not weight.isfinite().all() or (kind is GGMLQuantizationType.F16 and weight.abs().max() > 65504):
        raise UserError(f"--to gguf: the weight {name} is not finite or too large for {kind.name}; take gguf:bf16.")
    return quantize(weight.contiguous().numpy(), kind)
