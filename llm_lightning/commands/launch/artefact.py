"""What the launchers' artefacts have in common: no secrets, files that go along, and how they are written."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from llm_lightning.errors import UserError
from llm_lightning.launch.script import lines_of
from llm_lightning.loggers.redact import redact_arguments
from llm_lightning_safety.redaction import redact


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def rendered(documents: list[dict[str, Any]]) -> str:
    """Documents as YAML for people."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


def refuse_secrets(arguments: list[str], where: str, way_out: str) -> None:
    """Raise `UserError` for an argument that looks like a secret: what is written for the cluster is shown to others.

    Args:
        arguments: of the command line.
        where: what would show it.
        way_out: what to do instead.
    """
    for place, (old, new) in enumerate(zip(arguments, redact_arguments(arguments), strict=True)):
        if old == new:
            continue
        flag = old if old.startswith("-") else arguments[place - 1]
        raise UserError(f"{flag.split('=')[0]}: this looks like a secret, which {where} would show: {way_out}.")


def given_files(rest: list[str], folder: str, where: str, way_out: str) -> tuple[list[str], dict[str, str]]:
    """The arguments as nodes are given them, and the texts of configurations that are files here.

    Args:
        rest: the run's arguments.
        folder: in which the nodes find the files.
        where: what would show a secret in them.
        way_out: what to do with it instead.
    """
    arguments, files = [], dict[str, str]()
    for word in lines_of(rest):
        flag, _, value = word.partition("=")
        path = Path(value)
        if flag not in ("--config", "-c") or not path.is_file():
            arguments.append(word)
            continue
        text = path.read_text(encoding="utf-8")
        if redact(yaml.safe_load(text)) != yaml.safe_load(text):
            raise UserError(
                f"--config {value} has something in it that looks like a secret, which {where} would show: {way_out}."
            )
        name = f"{len(files)}-{path.name}"
        files[name] = text
        arguments.append(f"--config={folder}/{name}")
    return arguments, files


def check_syntax(script: str) -> None:
    """Raise `UserError` where bash does not read a script."""
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    if checked.returncode:
        raise UserError(f"The script is no valid bash; look at --setup: {checked.stderr.strip()}")
