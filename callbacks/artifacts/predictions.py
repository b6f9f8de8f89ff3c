"""What `predict` makes of each prompt, one JSON object a line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from callbacks.artifacts.json_lines import json_line
from callbacks.contract import ResumesPredictions, offered
from callbacks.errors import CallbackError
from llm_lightning_safety.files import atomic_file, open_unlinked, write_text
from llm_lightning_safety.seals import sealed_line, unsealed_line


class Predictions(BasePredictionWriter):
    """Appends each batch's predictions, a list of dicts, to `predictions.jsonl` in the run folder as they come.

    Each further rank writes a file of its own, `predictions.rank1.jsonl` and so on. The files of an earlier
    `predict` are replaced.

    A LightningModule that `ResumesPredictions` can go on where it was stopped: its predictions are
    `{"index": number, "row": dict}`, in any order, and lie in `predictions.jsonl.part` until all are there, under the
    key that names what they were made of, each line with a checksum. What an earlier run with the same key made goes to
    the module's `finished`, a set of indices; what does not fit its checksum is made again. At the end the rows are
    written in the order of their indices.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.path = Path()
        self.part: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        rank = "" if trainer.is_global_zero else f".rank{trainer.global_rank}"
        self.path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        if stage != "predict":
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        resumes = offered(pl_module, ResumesPredictions) is not None
        self.part = self.path.with_suffix(".jsonl.part") if resumes else None
        if self.part is None:
            write_text(self.path, "")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resuming = offered(pl_module, ResumesPredictions)
        if self.part is None or resuming is None:
            return
        head = sealed_line((json.dumps({"key": resuming.prediction_key()}) + "\n").encode())
        first, *lines = _earlier(self.part) or [b""]
        lines = lines if first == head else []
        rows = [(line, row) for line in lines if (row := unsealed_line(line)) is not None]
        with atomic_file(self.part) as temporary:
            temporary.write_bytes(b"".join([head, *(line for line, _ in rows)]))
        resuming.finished = {json.loads(row)["index"] for _, row in rows}
        if lines:
            again = f"; {len(lines) - len(rows):,} are damaged and made again" if len(rows) < len(lines) else ""
            pl_module.print(f"Going on behind {len(rows):,} that an earlier run made ({self.part}){again}.")

    @override
    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: list[dict[str, Any]], *_: Any
    ) -> None:
        with open_unlinked(self.part or self.path, "ab") as file:
            lines = map(json_line, prediction)
            file.writelines(lines if self.part is None else map(sealed_line, lines))

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.part is not None:
            with atomic_file(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(_in_order(self.part))
            self.part.unlink()
        pl_module.print(f"Predictions: {self.path}")


def _earlier(part: Path) -> list[bytes]:
    """The lines of the file, without a last one that a killed process left torn."""
    if not os.path.lexists(part):
        return []
    with open_unlinked(part, "rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _in_order(part: Path) -> Iterator[bytes]:
    """The rows by their indices; only where each one lies is held in memory."""
    places = []
    with open_unlinked(part, "rb") as file:
        file.readline()
        while True:
            offset = file.tell()
            if not (line := file.readline()):
                break
            places.append((_read(line)["index"], offset))
        for _, offset in sorted(places):
            file.seek(offset)
            yield json_line(_read(file.readline())["row"])


def _read(line: bytes) -> Any:
    row = unsealed_line(line)
    if row is None:
        raise CallbackError("what was predicted is not as it was written: run the same command again, which mends it")
    return json.loads(row)
