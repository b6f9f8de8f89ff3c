"""Networks in .gguf files: decoded once into a folder of the cache, and kept with the adapters trained on them."""

import copy
import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from llm_lightning_safety.files import follow_umask


def _cache() -> Path:
    return Path(os.environ.get("LLM_LIGHTNING_CACHE", Path.home() / ".cache" / "llm-lightning")) / "gguf"


def gguf_config(path: Path) -> PreTrainedConfig:
    """The architecture in a .gguf file; transformers takes seconds to read it, so it is done once for each content."""
    state = path.stat()
    return copy.deepcopy(_config(path.resolve(), state.st_mtime_ns, state.st_size))


@cache
def _config(path: Path, changed: int, size: int) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def converted(path: Path) -> Path:
    """The .gguf file as a folder with safetensors: it takes seconds to decode, so it is done once and kept."""
    from transformers import GgufConfig

    digest = hashlib.blake2b(digest_size=12)
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    cache = _cache()
    folder = cache / f"{path.stem}-{digest.hexdigest()}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"Converting {path.name} once, into {folder}")
            # Without `dequantize`, what was loaded could not be saved again.
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            unfinished = folder.with_suffix(f".tmp-{os.getpid()}")
            model.save_pretrained(unfinished)
            follow_umask(unfinished)
            unfinished.rename(folder)
    return folder


def kept_beside(base: str, folder: Path) -> str:
    """Where an adapter that is saved in `folder` finds its base: a converted network is put beside it, once.

    The cache is of this machine and may be emptied; whoever takes the folder along has to find the base too.

    Args:
        base: the network's `name_or_path`; what is no folder of the cache is returned as it is.
        folder: the adapter's.
    """
    source = Path(base)
    if source.parent != _cache().resolve() or not source.is_dir():
        return base
    place = folder.resolve().parent / source.name
    if not place.exists():
        unfinished = place.with_name(f"{place.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
        shutil.copytree(source, unfinished, copy_function=_link)
        unfinished.rename(place)
        print(f"The adapter's base, read from a .gguf file, is kept beside it, in {place}: take both along.")
    return str(place)


def _link(source: str, target: str) -> None:
    """Without a second copy of the weights where the disk is the same."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
