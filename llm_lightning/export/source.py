"""The model that is exported: a folder with all weights, those of an adapter merged in float32 for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import base_of, check_mergeable, is_adapter, task_of
from llm_lightning.models.loading.content import files_key
from llm_lightning.models.loading.gguf import converted
from llm_lightning.models.loading.new_tokens import own_tokenizer
from llm_lightning.models.merging.adapter import merge_folder
from llm_lightning.models.tasks import REWARD, Task, trained_for


@dataclass(frozen=True)
class Source:
    """What was trained.

    Attributes:
        given: the folder that was named.
        base: folder or hub id under an adapter; None where `given` is a whole network.
        folder: config, weights and tokenizer of the whole network; of an adapter there is one only within `merged`.
        config: of the whole network.
        tokenizer: the model's.
        task: what it is for.
        fingerprint: of all files that decide what it answers.
    """

    given: Path
    base: str | None
    folder: Path
    config: PreTrainedConfig
    tokenizer: Any
    task: Task
    fingerprint: str

    @property
    def is_reward_model(self) -> bool:
        """Whether it gives rewards, not tokens."""
        return self.task is REWARD

    @property
    def dtype(self) -> str:
        """Of the weights, as its config says."""
        return str(self.config.dtype or "float32").removeprefix("torch.")


def read_source(path: Path) -> Source:
    """What there is at a path; no weight is read.

    Raises:
        UserError: it is no model, its weights are quantized, it is an adapter that cannot be merged, or it has no
            tokenizer.
    """
    given = path.expanduser()
    if given.suffix == ".gguf" and given.is_file():
        given = converted(given)
    if not given.is_dir():
        raise UserError(f"{path} is no folder. Give the folder of a model or of an adapter, such as RUN/model/best.")
    base = None
    if is_adapter(given):
        check_mergeable(given)
        base = base_of(given)
    elif not (given / "config.json").is_file():
        hint = f" Do you mean {given / 'model' / 'best'}?" if (given / "model" / "best").is_dir() else ""
        raise UserError(f"{path} is no model folder: it has no config.json and no adapter_config.json.{hint}")
    config = _config(str(given) if base is None else base)
    tokenizer = own_tokenizer(str(given)) or (None if base is None else own_tokenizer(base))
    if tokenizer is None:
        raise UserError(f"{path} has no tokenizer, without which no export can be checked: save one into it.")
    fingerprint = files_key(str(given)) + ("" if base is None else f"+{files_key(base)}")
    task = trained_for(config) if base is None else task_of(given)
    return Source(given, base, given, config, tokenizer, task, fingerprint)


def _config(place: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read as a model: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{place} has quantized weights, which other formats round once more: export the folder that it was "
            "quantized from, or serve it as it is."
        )
    return config


@contextmanager
def merged(source: Source, scratch: Path, tell: Callable[[str], None]) -> Iterator[Source]:
    """The source with a folder of all weights; of an adapter one in float32 below `scratch`."""
    if source.base is None:
        if not any(source.folder.glob("*.safetensors")):
            raise UserError(f"{source.given} holds no .safetensors, which are what is exported.")
        yield source
        return
    tell(f"merging {source.given} into {source.base} in float32, for a while")
    whole = scratch / "whole"
    merge_folder(source.given, whole, dtype="float32")
    if not (whole / "tokenizer_config.json").is_file():
        source.tokenizer.save_pretrained(whole)
    yield Source(
        source.given, source.base, whole, _config(str(whole)), source.tokenizer, source.task, source.fingerprint
    )
