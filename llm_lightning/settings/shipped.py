"""The configurations that come with the package, by name, and `llm-lightning configs` to list and copy them."""

import difflib
import shutil
from collections.abc import Iterator
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser

FOLDER = Path(__file__).parent.parent / "configs"

USAGE = """\
usage: llm-lightning configs [NAME ...] [--copy FOLDER]

Lists the configurations that come with llm-lightning. `--config NAME` takes one by its name, in any folder:

  llm-lightning fit --config sft --config peft/lora --model.backbone.path MODEL --data.path my.jsonl

With names it prints these files. With --copy it writes them, or all of them, to FOLDER, to be changed there.
"""


def find_config(given: str) -> str:
    """The file that `--config` means: one on disk, else one that comes with the package.

    Args:
        given: a path, or a name with or without `configs/` before it and `.yaml` behind it. What reads as YAML itself
            (`{trainer: ...}`) is left as it is.

    Raises:
        UserError: there is neither; says which names are close.
    """
    if Path(given).is_file() or set(given) & set("{:\n"):
        return given
    try:
        return str(FOLDER / f"{_known(given)}.yaml")
    except UserError as error:
        raise UserError(f"--config {given}: there is no such file, and {error}") from None


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
    return [str(path.relative_to(FOLDER).with_suffix("")) for path in files]


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `configs`.
        debug: show the traceback of an error.
    """
    if "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    parser = FlagParser("llm-lightning configs", add_help=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--copy", type=Path, metavar="FOLDER")
    try:
        known = parser.parse_args(args)
        chosen = [_known(name) for name in known.names] or names()
        if known.copy is not None:
            lines = list(_copy(chosen, known.copy))
        elif known.names:
            lines = [(FOLDER / f"{name}.yaml").read_text().rstrip("\n") for name in chosen]
        else:
            lines = [f"{name:<32}{_first_comment(FOLDER / f'{name}.yaml')}" for name in chosen]
    except (UserError, OSError) as error:
        return report(error, debug)
    print("\n".join(lines))
    return 0


def _copy(chosen: list[str], target: Path) -> Iterator[str]:
    """Write files to a folder; all of them or none, and none over another."""
    paths = {name: target / f"{name}.yaml" for name in chosen}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise UserError(f"--copy {target}: {there[0]} is there already; name a new folder.")
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FOLDER / f"{name}.yaml", path)
        yield str(path)


def _known(given: str) -> str:
    name = given.removeprefix("configs/").removesuffix(".yaml")
    if name in names():
        return name
    close = difflib.get_close_matches(name, names(), n=3)
    near = f" Near it are {', '.join(close)}." if close else ""
    raise UserError(
        f"no configuration named {name} comes with llm-lightning.{near} `llm-lightning configs` lists them."
    )


def _first_comment(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")
