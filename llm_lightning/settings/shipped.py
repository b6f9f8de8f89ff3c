"""The configurations that come with the package, by name."""

import difflib
from pathlib import Path

from llm_lightning.errors import UserError

FOLDER = Path(__file__).parent.parent / "configs"
TASKS = FOLDER / "tasks"
"""YAML of lm-evaluation-harness, and no settings of a run."""


def find_config(given: str, flag: str = "--config") -> str:
    """The file that `--config` means: one on disk, else one that comes with the package.

    Args:
        given: a path, or a name with or without `configs/` before it and `.yaml` behind it. What reads as YAML itself
            (`{trainer: ...}`) is left as it is.
        flag: that it was given by, for messages.

    Raises:
        UserError: there is neither; says which names are close.
    """
    # A long text is an error to `is_file`.
    if set(given) & set("{:\n") or Path(given).is_file():
        return given
    try:
        return str(FOLDER / f"{known_name(given)}.yaml")
    except UserError as error:
        raise UserError(f"{flag} {given}: there is no such file, and {error}") from None


def with_found_configs(args: list[str]) -> list[str]:
    """A command line with the file of each `--config` in the place of its name.

    Raises:
        UserError: there is no such file or name.
    """
    found, is_value = [], False
    for arg in args:
        if is_value:
            found.append(find_config(arg))
        elif arg.startswith("--config="):
            found.append(f"--config={find_config(arg.removeprefix('--config='))}")
        else:
            found.append(arg)
        is_value = arg in ("--config", "-c") and not is_value
    return found


def names() -> list[str]:
    """The configurations' names, stages before overlays."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return [str(path.relative_to(FOLDER).with_suffix("")) for path in files if path.parent != TASKS]


def tasks() -> list[str]:
    """The names of the ready tasks of `llm-lightning evaluate`."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def known_name(given: str) -> str:
    """The name of one that comes with the package, from it with or without `configs/` and `.yaml`.

    Raises:
        UserError: there is none; says which names are close.
    """
    name = given.removeprefix("configs/").removesuffix(".yaml")
    if name in names():
        return name
    close = difflib.get_close_matches(name, names(), n=3)
    near = f" Near it are {', '.join(close)}." if close else ""
    raise UserError(
        f"no configuration named {name} comes with llm-lightning.{near} `llm-lightning configs` lists them."
    )
