"""The run folder: its config.yaml with its history, and an earlier run moved out of the way."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from llm_lightning.errors import UserError
from llm_lightning.loggers.redact import redact
from llm_lightning.run.resumed_settings import changes
from llm_lightning_safety.files import read_text, write_text

NAME = "config.yaml"


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to config.yaml, secrets left out; Lightning's refuses to write it twice.

    Not before the checkpoint was read, since a command that is refused there trains nothing. Each time that a run goes
    on with other settings a comment more, at the file's beginning, tells the step and what they were.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: Lightning's own would write the config here, before the run is known to start."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the first step."""
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        config = as_written(self.parser, self.config)
        history = _history(root, config, trainer.global_step) if trainer.ckpt_path is not None else ""
        write_text(root / NAME, history + yaml.safe_dump(config, sort_keys=False))


def as_written(parser: Any, config: Any) -> dict[str, Any]:
    """A configuration as config.yaml holds it."""
    return redact(yaml.safe_load(parser.dump(config, skip_none=False)))


def read_config(root: Path) -> dict[str, Any]:
    """The configuration of the run in `root`; empty where there is none.

    Raises:
        UserError: the file is not what a run writes.
    """
    path = root / NAME
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not as a run writes it ({' '.join(str(error).split())}). Mend it, remove it, or take another "
            "folder by --trainer.default_root_dir."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("trainer", {}), dict):
        raise UserError(
            f"{path} holds no settings of a run. Mend it, remove it, or take another folder by "
            "--trainer.default_root_dir."
        )
    return config


def saved_precision(root: Path) -> str | None:
    """`trainer.precision` of the run in `root`, None where there is none."""
    return read_config(root).get("trainer", {}).get("precision")


def _history(root: Path, config: dict[str, Any], step: int) -> str:
    """The comments that the file has, and one more where settings changed."""
    path = root / NAME
    if not path.is_file():
        return ""
    lines = read_text(path).splitlines(keepends=True)
    kept = "".join(line for line in lines if line.startswith("# "))
    changed = changes(read_config(root), config)
    if not changed:
        return kept
    words = "; ".join(f"{name} {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in changed.items())
    return f"{kept}# {datetime.now():%Y-%m-%d %H:%M:%S}, from step {step}: {words}\n"


@rank_zero_only
def move_aside(root: Path) -> None:
    """Keep an earlier run under another name: starting over must not lose it."""
    if not (root / "checkpoints").exists():
        return
    modified = datetime.fromtimestamp((root / "checkpoints").stat().st_mtime)
    target = root.with_name(f"{root.name}.{modified:%Y%m%d-%H%M%S}")
    root.rename(target)
    rank_zero_info(f"Starting over; the earlier run is now {target}.")
