"""Log-probabilities of the reference on disk: computed once, so that training holds one network.

A cache is a folder named by all that its numbers depend on: the bits of the weights and the config, the rows
(records, template, tokenizer, how they are cut) and the precision. So another reference has another cache. Its numbers
lie where the pairs stand among the rows, NaN where they are still to come, so that a killed build goes on; ranks write
and read their own rows of one file. When all are there the folder is sealed, and at each start the seal is compared and
the first rows are computed again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning_safety.files import atomic_file, make_folder
from llm_lightning_safety.seals import SEAL, is_whole, seal_folder

VERSION = 2  # of the numbers and of how they are written
NAN_AT_ONCE = 2**20
TOLERANCES = {"32-true": (1e-4, 1e-2), "64-true": (1e-6, 1e-4)}
"""Relative and absolute, in nats of an answer. Batches of other sizes differ in the last bits."""
COARSE = (2e-2, 1.0)  # of bfloat16 and float16


class Part(NamedTuple):
    """What there is to know of some rows.

    Args:
        name: of its file.
        shape: of the numbers.
        batches: to compute them of, each time anew; `numbers` are their places along the first dimension.
    """

    name: str
    shape: tuple[int, ...]
    batches: Callable[[], Iterable[Mapping[str, Any]]]


def cache_key(weights: str, config: Any, rows: list[str], precision: str) -> str:
    """The name of a cache.

    Args:
        weights: see `content_key`.
        config: of the network.
        rows: names of the rows.
        precision: of the trainer.
    """
    said = {
        name: value for name, value in config.to_dict().items() if not name.startswith("_") and "version" not in name
    }
    text = json.dumps([VERSION, weights, said, rows, precision], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ReferenceCache:
    """The numbers of one reference on some parts of the data.

    Args:
        folder: of this key.
        parts: of the data.
        trainer: whose ranks share the work.
    """

    def __init__(self, folder: Path, parts: list[Part], trainer: Trainer) -> None:
        self.folder = folder
        self.parts = parts
        self.trainer = trainer
        self.values: dict[str, np.memmap] = {}

    def prepare(self, logprobs: Callable[[Mapping[str, Any]], Tensor], tell: Callable[[str], None]) -> None:
        """Compute what is missing; every rank calls it.

        Args:
            logprobs: the reference's, of a batch.
            tell: prints a line on the first rank.

        Raises:
            UserError: what is there is damaged, or not what this reference gives.
        """
        is_done = self._on_first_rank(lambda: (self.folder / SEAL).exists())
        if is_done:
            if not self._on_first_rank(lambda: is_whole(self.folder)):
                raise UserError(f"The reference's log-probabilities in {self.folder} are damaged: delete that folder.")
        else:
            self._on_first_rank(self._make_files)
        mode: Any = "r" if is_done else "r+"
        self.values = {
            part.name: np.memmap(self.folder / part.name, np.float32, mode, shape=part.shape)
            for part in self.parts
            if part.shape[0]
        }
        if is_done:
            self._check(logprobs)
            tell(f"Reference: log-probabilities from {self.folder}")
            return
        tell(f"Reference: computing the log-probabilities of {self.parts[0].shape[0]:,} records into {self.folder}")
        self._check(logprobs)
        for part in self.parts:
            if part.shape[0]:
                self._fill(part, logprobs)
        self.trainer.strategy.barrier()
        missing = [name for name, values in self.values.items() if np.isnan(values).any()]
        assert not missing, missing
        self._on_first_rank(self._seal)

    def look_up(self, name: str, numbers: Tensor) -> Tensor:
        """(K,) float32 of a batch's answers.

        Args:
            name: of the part.
            numbers: (N,) on the CPU.
        """
        return (
            torch.from_numpy(self.values[name][numbers.numpy()].reshape(-1).copy()) if len(numbers) else torch.zeros(0)
        )

    def _seal(self) -> bool:
        seal_folder(self.folder)
        return True

    def _make_files(self) -> bool:
        make_folder(self.folder)
        for part in self.parts:
            place, size = self.folder / part.name, 4 * int(np.prod(part.shape))
            if place.exists() and place.stat().st_size == size:
                continue
            with atomic_file(place) as temporary, temporary.open("wb") as file:
                for first in range(0, size // 4, NAN_AT_ONCE):
                    file.write(np.full(min(NAN_AT_ONCE, size // 4 - first), np.nan, np.float32).tobytes())
        return True

    def _fill(self, part: Part, logprobs: Callable[[Mapping[str, Any]], Tensor]) -> None:
        values = self.values[part.name]
        for batch in part.batches():
            numbers = batch["numbers"].numpy()
            if self._anywhere(bool(np.isnan(values[numbers]).any())):
                values[numbers] = logprobs(batch).cpu().float().numpy().reshape(-1, *part.shape[1:])
        values.flush()

    def _check(self, logprobs: Callable[[Mapping[str, Any]], Tensor]) -> None:
        """Compute the first rows again, as far as they are known."""
        relative, absolute = TOLERANCES.get(str(self.trainer.precision), COARSE)
        for part in self.parts:
            batch = next(iter(part.batches()), None)
            if batch is None or not part.shape[0]:
                continue
            known = self.look_up(part.name, batch["numbers"])
            if not self._anywhere(bool(len(known)) and not bool(known.isnan().any())):
                continue
            found = logprobs(batch).cpu().float()
            is_same = torch.allclose(found, known, rtol=relative, atol=absolute, equal_nan=False) or known.isnan().any()
            if self._anywhere(not is_same):
                raise UserError(
                    f"The reference's log-probabilities in {self.folder} are not what model.backbone gives now: delete "
                    "that folder, or set model.reference=live."
                )

    def _on_first_rank(self, function: Callable[[], bool]) -> bool:
        """What it returns there, on every rank."""
        value = function() if self.trainer.is_global_zero else False
        return bool(self.trainer.strategy.broadcast(value))

    def _anywhere(self, is_so: bool) -> bool:
        """Whether it is on any rank: ranks that gather each other's weights run the network together."""
        if self.trainer.world_size == 1:
            return is_so
        device = self.trainer.strategy.root_device
        return bool(self.trainer.strategy.reduce(torch.tensor(float(is_so), device=device), reduce_op="sum"))
