"""A folder for Hugging Face Optimum, written by its own exporter and ONNX Runtime's own quantizer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.export.environments import python_of
from llm_lightning.export.gguf.network import head_size
from llm_lightning.export.merged import Merged
from llm_lightning.export.proof.asking import last_error, run_apart
from llm_lightning.export.proof.limits import EIGHT_BIT_ACTIVATIONS, EXACT, Limits
from llm_lightning.export.source import Source
from llm_lightning.export.target import Target

ENVIRONMENT = "onnx-optimum"
CLI = ("-s", "-m", "optimum.commands.optimum_cli")


class OnnxOptimum(Target):
    """ONNX for Optimum's ORTModelForCausalLM, in an environment of its own; reward models too."""

    formats: Mapping[str, Limits] = {"fp32": EXACT, "int8": EIGHT_BIT_ACTIVATIONS}
    script = "optimum_answers"

    def default(self, source: Source) -> str:
        """The network as it is."""
        return "fp32"

    def check(self, source: Source, form: str) -> None:
        """Raises `UserError` for rotary embeddings that its transformers, and heads that Optimum could not read."""
        older_config(source.config.to_dict())
        text = source.config.get_text_config()
        size = text.hidden_size // text.num_attention_heads
        if not source.is_reward_model and head_size(text) != size:
            raise UserError(
                f"--to onnx-optimum: its cache has heads of hidden_size / num_attention_heads = {size}, the network's "
                f"are of {head_size(text)}, as where groups of heads were pruned. Take --to onnx-genai or merged."
            )

    def write(self, source: Source, form: str, folder: Path) -> None:
        """Both in processes of their own; raises `UserError` with what they said where they fail."""
        older = folder / ".older"
        older.mkdir()
        Merged().write(source, "float32", older)
        source.tokenizer.save_pretrained(older)  # as 5 splits texts, whatever the file said
        write_older(older)
        task = "text-classification" if source.is_reward_model else "text-generation-with-past"
        whole = folder if form == "fp32" else folder / ".fp32"
        self._run(
            source, folder, "export", "onnx", "--model", str(older.resolve()), "--task", task, str(whole.resolve())
        )
        if form == "int8":
            self._run(
                source, folder, "onnxruntime", "quantize", "--onnx_model", str(whole.resolve()), "-o",
                str(folder.resolve()), "--avx2", "--per_channel",
            )  # fmt: skip
            (folder / "model_quantized.onnx").rename(folder / "model.onnx")
            for file in whole.iterdir():
                if ".onnx" not in file.name:
                    shutil.copyfile(file, folder / file.name)
            shutil.rmtree(whole)
        shutil.rmtree(older)

    def _run(self, source: Source, folder: Path, *words: str) -> None:
        done = run_apart([str(self.python()), *CLI, *words], folder)
        if done.returncode:
            raise UserError(
                f"--to onnx-optimum: Optimum could not write a {source.config.model_type}: {last_error(done)}"
            )

    def questions(self, folder: Path) -> dict[str, Any]:
        """Where it lies."""
        return {"path": str(folder)}

    def python(self) -> Path:
        """That of its environment."""
        return python_of(ENVIRONMENT)


def write_older(folder: Path) -> None:
    """Let transformers 4 read what 5 wrote: rotary settings, and the tokenizer's class and special tokens."""
    for name, changed in (("config.json", older_config), ("tokenizer_config.json", _older_tokenizer)):
        file = folder / name
        content = changed(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """With `rope_theta` and `rope_scaling`; raises `UserError` where layers have several."""
    rope = dict(config.get("rope_parameters") or {})
    if not rope:
        return config
    if "rope_theta" not in rope:
        raise UserError(
            f"--to onnx-optimum: it needs transformers 4, which has no rotary embeddings such as {rope}. "
            "Take --to merged."
        )
    older = {"rope_theta": rope.pop("rope_theta")}
    return config | older | {"rope_scaling": None if rope.get("rope_type", "default") == "default" else rope}


def _older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """All that a fast tokenizer does is in `tokenizer.json`, whatever the name of its class."""
    extra = config.pop("extra_special_tokens", None)
    more = {"additional_special_tokens": extra} if isinstance(extra, list) else {}
    return config | more | {"tokenizer_class": "PreTrainedTokenizerFast"}
