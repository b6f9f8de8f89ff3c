"""The weights of a model folder, one after the other: never is a whole network in memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from llm_lightning.errors import UserError


@contextmanager
def opened_weights(folder: Path) -> Iterator[tuple[Callable[[str], Tensor], dict[str, str]]]:
    """What reads a weight by its name, and for each name the file that has it.

    Raises:
        UserError: the folder has no .safetensors; for a name that it does not have, when it is read.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    with ExitStack() as stack:
        if index.is_file():
            names = dict(json.loads(index.read_text())["weight_map"])
        else:
            names = {}
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(file, framework="pt") as opened:
                    names |= dict.fromkeys(opened.keys(), file.name)
        if not names:
            raise UserError(f"{folder} holds no .safetensors, which are what is read.")
        files = {file: stack.enter_context(safe_open(folder / file, framework="pt")) for file in set(names.values())}

        def get(name: str) -> Tensor:
            if name not in names:
                raise UserError(f"{folder} has no weight {name}, which the others have.")
            tensor: Tensor = files[names[name]].get_tensor(name)
            return tensor

        yield get, names


def described_weights(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """For each weight its shape and its type as safetensors spells it (F32, BF16, ...); none is read."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                part = opened.get_slice(name)
                found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    return found
