"""Several model folders made into one, weight by weight: never is a whole network in memory."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoConfig

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import is_adapter
from llm_lightning.models.loading.new_tokens import own_tokenizer
from llm_lightning.models.loading.weights import opened_weights
from llm_lightning.models.merging.adapter import merge_folder
from llm_lightning.models.merging.methods import Merging, merged

FREE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "eos_token_id", "bos_token_id", "pad_token_id"}
"""In a config, what does not say which network it is."""


def merge_models(
    models: Sequence[Path], base: Path | None, output: Path, merging: Merging, tell: Callable[[str], None]
) -> None:
    """Merge networks of one architecture and vocabulary; an adapter stands for its network with all that it changes.

    The first one's config, tokenizer, dtype and files are those of the result.

    Args:
        models: folders.
        base: what they were trained from; None for none.
        output: must not exist, or be empty.
        merging: how.
        tell: prints a line.

    Raises:
        UserError: the networks do not go together, or a setting does not fit them.
    """
    check(models, base, output, merging)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        whole = [whole_folder(path, Path(scratch) / f"model-{number}", tell) for number, path in enumerate(models)]
        own_base = None if base is None else whole_folder(base, Path(scratch) / "base", tell)
        check_configs([*models, *filter(None, [base])], [*whole, *filter(None, [own_base])])
        result = Path(scratch) / "merged"
        write_merged(whole, own_base, result, merging, tell)
        result.replace(output)


def check(models: Sequence[Path], base: Path | None, output: Path, merging: Merging) -> None:
    """Raise `UserError` for settings that do not fit together, before anything is read."""
    needs_base = merging.method in ("ties", "dare")
    if needs_base and base is None:
        raise UserError(
            f"--method {merging.method} merges changes: name what the networks were trained from by --base."
        )
    if merging.method == "slerp" and (len(models) != 2 or base is not None):
        raise UserError(
            f"--method slerp goes from one network to another: name two, without --base, not {len(models)}."
        )
    if len(merging.weights) != len(models):
        raise UserError(
            f"--weights: there are {len(models)} networks, and {len(merging.weights)} weights; give each one."
        )
    if base is None and (min(merging.weights) < 0 or not sum(merging.weights)):
        raise UserError(f"--weights {', '.join(map(str, merging.weights))}: they must be at least 0, and one above it.")
    if not 0 < merging.density <= 1:
        raise UserError(f"--density {merging.density} must be above 0 and at most 1.")
    for path in (*models, *(() if base is None else (base,))):
        if not (is_adapter(path) or (path / "config.json").is_file()):
            raise UserError(f"{path} is no model folder: it has no config.json and no adapter_config.json.")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: name a new folder.")


def whole_folder(path: Path, place: Path, tell: Callable[[str], None]) -> Path:
    """A folder with all weights: that of an adapter is written to `place`, where it may be already."""
    if not is_adapter(path):
        return path
    if not place.exists():
        tell(f"{path} is an adapter: its network is written with it, for a while")
        merge_folder(path, place)
    return place


def check_configs(names: Sequence[Path], folders: Sequence[Path]) -> None:
    """Raise `UserError` where networks or tokenizers differ from the first one's.

    Args:
        names: the folders as they were given, for the message.
        folders: with all weights.
    """
    configs = [_said(folder) for folder in folders]
    vocabularies = [_vocabulary(folder) for folder in folders]
    for name, config, vocabulary in zip(names[1:], configs[1:], vocabularies[1:], strict=True):
        for key in sorted(configs[0].keys() | config.keys()):
            if configs[0].get(key) != config.get(key):
                raise UserError(
                    f"{name} is another network than {names[0]}: {key} is {config.get(key)!r} there and "
                    f"{configs[0].get(key)!r} here. Only networks of one shape can be merged."
                )
        if None not in (vocabulary, vocabularies[0]) and vocabulary != vocabularies[0]:
            raise UserError(f"{name} has another vocabulary than {names[0]}: its weights belong to other tokens.")


def _said(folder: Path) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    return {key: value for key, value in config.items() if key not in FREE}


def _vocabulary(folder: Path) -> dict[str, int] | None:
    tokenizer = own_tokenizer(str(folder))
    return None if tokenizer is None else dict(tokenizer.get_vocab())


def write_merged(
    models: Sequence[Path], base: Path | None, result: Path, merging: Merging, tell: Callable[[str], None]
) -> None:
    """The merged network in a new folder, with the first one's files; all are whole ones."""
    shutil.copytree(models[0], result, ignore=shutil.ignore_patterns("*.safetensors"))
    with ExitStack() as stack:
        read = [stack.enter_context(opened_weights(folder)) for folder in models]
        read_base = None if base is None else stack.enter_context(opened_weights(base))
        first, names = read[0]
        for folder, (_, theirs) in zip(models[1:], read[1:], strict=True):
            if different := sorted(names.keys() ^ theirs.keys()):
                raise UserError(f"{folder} and {models[0]} have other weights: {different[0]} is in one of them only.")
        for file in sorted(set(names.values())):
            content = {}
            for name in (name for name, own in names.items() if own == file):
                own = first(name)
                values = [own.float(), *(get(name).float() for get, _ in read[1:])]
                origin = None if read_base is None else read_base[0](name).float()
                content[name] = merged(name, values, origin, merging).to(own.dtype) if own.is_floating_point() else own
            save_file(content, result / file, metadata={"format": "pt"})
            tell(f"{file}: {len(content)} weights")
