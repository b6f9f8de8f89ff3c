"""The run folder: its config.yaml, and an earlier run moved out of the way."""

from datetime import datetime
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from llm_lightning.loggers.redact import redact
from safety.files import read_text, write_text


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to config.yaml, secrets left out; Lightning's refuses to write it twice."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it before the run starts."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        write_text(root / "config.yaml", yaml.safe_dump(redact(yaml.safe_load(text)), sort_keys=False))


def saved_precision(root: Path) -> str | None:
    """`trainer.precision` of the run in `root`, None where there is none."""
    path = root / "config.yaml"
    if not path.is_file():
        return None
    return (yaml.safe_load(read_text(path)).get("trainer") or {}).get("precision")


@rank_zero_only
def move_aside(root: Path) -> None:
    """Keep an earlier run under another name: starting over must not lose it."""
    if not (root / "checkpoints").exists():
        return
    modified = datetime.fromtimestamp((root / "checkpoints").stat().st_mtime)
    target = root.with_name(f"{root.name}.{modified:%Y%m%d-%H%M%S}")
    root.rename(target)
    rank_zero_info(f"Starting over; the earlier run is now {target}.")
