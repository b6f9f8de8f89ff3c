"""Tasks by name or file: lm-evaluation-harness's own, the ready ones of `configs/tasks`, and a user's YAML."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import TemplateError
from lm_eval.tasks import TaskManager

from llm_lightning.errors import UserError
from llm_lightning.settings.shipped import TASKS as READY

# What lm-eval and `datasets` raise for a task's mistakes has no base in common.
MISTAKES = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, ImportError, OSError, TemplateError,
    yaml.YAMLError,
)  # fmt: skip


def load_tasks(
    names: Sequence[str],
    include: Sequence[Path] = (),
    data: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    num_fewshot: int | None = None,
    seed: int = 1234,
) -> dict[str, Any]:
    """Tasks by name, with their data read.

    Args:
        names: of tasks, groups or tags, or paths of YAML files.
        include: folders with a user's YAML files.
        data: by ready task, the file or folder that it reads.
        columns: by column that a ready task wants, what the user's file calls it.
        num_fewshot: examples before each item, for tasks that do not insist on none.
        seed: by which lm-eval draws them.

    Raises:
        UserError: there is no such task, or it has a mistake.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not names:
        raise UserError("tasks: name one task at least.")
    metadata = {"data": dict(data or {}), "columns": dict(columns or {})}
    manager = _manager(names, include, metadata)
    tasks: dict[str, Any] = {}
    for name in names:
        tasks |= _load(manager, name)
    unread = set(metadata["data"]) - set(tasks)
    if unread:
        raise UserError(
            f"--data {sorted(unread)[0]}: this task is not among those that are asked ({', '.join(tasks)})."
        )
    for name, task in tasks.items():
        _set_fewshot(name, task, num_fewshot, seed)
    return tasks


def _manager(names: Sequence[str], include: Sequence[Path], metadata: dict[str, Any]) -> TaskManager:
    """With lm-eval's own 14,000 tasks only where one of them is meant: to look through them takes half a minute."""
    for folder in include:
        if not folder.is_dir():
            raise UserError(f"include {folder}: there is no such folder.")
    folders = [str(folder) for folder in (READY, *include)]
    own = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if all(name in own.task_index or Path(name).is_file() for name in names):
        return own
    return TaskManager(include_path=folders, include_defaults=True, metadata=metadata)


def _load(manager: TaskManager, name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"tasks: there is no file {name}.")
        _check_file(Path(name))
    elif name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f" Near it are {', '.join(near)}." if near else ""
        raise UserError(f"tasks: there is no task {name!r}, and no such YAML file.{hint}")
    try:
        return dict(manager.load([name])["tasks"])
    except UserError:
        raise
    except MISTAKES as error:
        raise UserError(f"The task {name} cannot be used: {in_words(error)}") from error


def _check_file(path: Path) -> None:
    try:
        # Tags such as !function are lm-eval's affair.
        yaml.compose(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _set_fewshot(name: str, task: Any, num_fewshot: int | None, seed: int) -> None:
    own = task.get_config("num_fewshot")
    wanted = own if num_fewshot is None else 0 if own == 0 else num_fewshot
    task.set_config(key="num_fewshot", value=wanted or 0)
    task.set_fewshot_seed(seed=seed)
    examples = getattr(getattr(task, "sampler", None), "df", None)
    if wanted and examples is not None and len(examples) < wanted:
        raise UserError(
            f"num_fewshot={wanted}: the task {name} has {len(examples)} examples to show. Ready tasks take them "
            "from the file `train` in the folder that --data names."
        )


def in_words(error: BaseException) -> str:
    """The first line of what a library says, with the kind of error where that is all there is."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:400]}" if text else kind
