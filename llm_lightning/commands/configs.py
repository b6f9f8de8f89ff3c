"""`llm-lightning configs`: lists the configurations that come with the package, prints them, copies them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser
from llm_lightning.settings.shipped import FOLDER, known_name, names

USAGE = """\
usage: llm-lightning configs [NAME ...] [--copy FOLDER]

Lists the configurations that come with llm-lightning. `--config NAME` takes one by its name, in any folder:

  llm-lightning fit --config sft --config peft/lora --model.backbone.path MODEL --data.path my.jsonl

With names it prints these files. With --copy it writes them, or all of them, to FOLDER, to be changed there.
"""


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
        chosen = [known_name(name) for name in known.names] or names()
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


def _first_comment(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")
