"""An adapter folder: what it says, and its weights added to those of the network it was trained on."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models.normalization import read_normalization
from llm_lightning.models.tasks import LANGUAGE, TASKS, Task

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder that holds an adapter and no network."""
    folder = Path(path).expanduser()
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Hub id or folder of the network that the adapter in `folder` belongs to; a folder that is not there any more is
    also looked for beside the adapter's, where both were moved.

    Raises:
        UserError: its config does not say, or names a folder that is not there.
    """
    config = _read_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} does not say which network the adapter belongs to: write its folder or hub id "
            "into base_model_name_or_path."
        )
    if Path(base).is_absolute() and not Path(base).exists():
        if (beside := folder.resolve().parent / Path(base).name).is_dir():
            return str(beside)
        raise UserError(
            f"The adapter in {folder} belongs to {base}, which is not there any more: bring it back, or write where it "
            f"is now into base_model_name_or_path of {folder / ADAPTER_CONFIG}."
        )
    return str(base)


def task_of(folder: Path) -> Task:
    """What the adapter in `folder` was trained for."""
    return TASKS.get(_read_config(folder).get("task_type") or "", LANGUAGE)


def check_mergeable(folder: Path) -> None:
    """Raise `UserError` for methods that are not a change of weights, before any weight is read."""
    method = _read_config(folder).get("peft_type")
    if words := why_unmergeable(str(method)):
        loader = "llm_lightning.models.adapters.load_bottleneck" if method == "BOTTLENECK" else "peft.PeftModel"
        raise UserError(
            f"The adapter in {folder} ({method}) cannot be merged: {words}. Use it on top of its network, by {loader}; "
            "LoRA, DoRA, AdaLoRA, IA3, OFT and VeRA can be merged."
        )


def why_unmergeable(method: str) -> str | None:
    """Why adapters of a method, as peft spells its type, are no change of weights; None for those that are."""
    words = {
        "BOTTLENECK": "are layers of their own",
        "ADAPTION_PROMPT": "change what attention looks at",
        "PREFIX_TUNING": "change what attention looks at",
        "PROMPT_TUNING": "are tokens before the text",
        "P_TUNING": "are tokens before the text",
    }
    return f"its parts {words[method]}" if method in words else None


def merge(network: PreTrainedModel, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The network with the adapter in `folder` added to its weights, every one of them ready to train.

    Args:
        network: the adapter's base, in float32, without quantization.
        folder: of an adapter.
        dtype: of the weights, once they are merged.

    Raises:
        UserError: the method cannot be merged, or the adapter is for another network.
    """
    check_mergeable(folder)
    if getattr(network, "is_quantized", False):
        raise UserError(
            f"The adapter in {folder} cannot be merged into quantized weights: write the unquantized network into "
            f"base_model_name_or_path of {folder / ADAPTER_CONFIG}."
        )
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*(tied|tie_word_embeddings|is_gradient_checkpointing).*")
            # Adapter weights that are missing, or have other names, are a warning to peft.
            warnings.filterwarnings("error", message=r"Found missing adapter keys.*")
            model: Any = PeftModel.from_pretrained(network, str(folder), torch_device=str(network.device))
            _untie(network)
            merged = model.merge_and_unload(safe_merge=True)
            read_normalization(folder, merged.config)
    except (ValueError, RuntimeError, AttributeError, UserWarning) as error:
        raise UserError(f"The adapter in {folder} cannot be merged: {str(error).splitlines()[0]}") from error
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(True)
    return merged


def merged_copy(model: Any) -> PreTrainedModel:
    """A network like `model`, with the adapter that is on it (if one is) added to its weights; `model` stays."""
    if not hasattr(model, "merge_and_unload"):
        return model
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*(tied|tie_word_embeddings).*")
        _untie(model.get_base_model())
        return model.merge_and_unload()


def _untie(network: PreTrainedModel) -> None:
    """Give head and embeddings a weight each where an adapter is on one of them: merging it must not change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper
    from peft.utils.other import TrainableTokensWrapper

    head, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    if head is None:
        return
    adapted = [x for x in (head, embeddings) if isinstance(x, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if all(isinstance(x, TrainableTokensWrapper) for x in adapted):  # rows of a shared weight are trained as one
        return
    own_head, own_embeddings = _untouched(head), _untouched(embeddings)
    if own_head.weight is own_embeddings.weight:
        own_head.weight = nn.Parameter(own_head.weight.detach().clone(), requires_grad=False)
        network.config.tie_word_embeddings = False


def _untouched(layer: Any) -> Any:
    """The network's own layer under what peft put around it."""
    for name in ("original_module", "base_layer"):
        layer = getattr(layer, name, layer)
    return layer


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no adapter folder: it has no {ADAPTER_CONFIG}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
