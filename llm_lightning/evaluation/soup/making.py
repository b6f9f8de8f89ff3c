"""A greedy soup from folders to a folder; where it was killed it goes on."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from llm_lightning.errors import UserError
from llm_lightning.evaluation.soup.greedy import Tried, greedy_soup, table
from llm_lightning.evaluation.soup.held_out import Document, HeldOut, Losses
from llm_lightning.measuring.answers import PREFIX, Answers, key_of
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.loading.content import files_key
from llm_lightning.models.merging.folders import check, check_configs, whole_folder, write_merged
from llm_lightning.models.merging.methods import Merging
from llm_lightning.models.tasks import LANGUAGE
from llm_lightning.rollouts.local_engine import LocalEngine

LONGEST = 2048
"""Tokens of a piece, as the rows of conversations have by default."""

REPORT = "soup.json"
"""What was tried, in the folder of the soup."""


def make_soup(
    models: Sequence[Path], output: Path, documents: Callable[[str], Iterable[Document]], tell: Callable[[str], None]
) -> list[Tried]:
    """Write the greedy soup of networks; an adapter stands for its network with all that it changes.

    Beside `output` lies `.NAME.soup` meanwhile: whole networks of adapters, the mean that is tried, and the losses that
    are known, which the next attempt finds. One network is in memory at a time, and while means are written none.

    Args:
        models: folders.
        output: must not exist, or be empty.
        documents: from a tokenizer's folder to what the loss is measured on.
        tell: prints a line.

    Raises:
        UserError: the networks do not go together, or there is too little to measure on.
    """
    check(models, None, output, _mean_of(models))
    scratch = output.with_name(f".{output.name}.soup")
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(scratch / ".lock", timeout=0):
            tried = _Soup(models, scratch, documents, tell).make(output)
    except Timeout:
        raise UserError(f"Another process makes {output} just now: wait for it, or name another folder.") from None
    except Exception:
        if not any(scratch.glob(f"{PREFIX}*")):  # nothing was measured that the next attempt could use
            shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)
    return tried


class _Soup:
    def __init__(
        self, models: Sequence[Path], scratch: Path, documents: Callable[[str], Iterable[Document]], tell: Any
    ) -> None:
        self.models, self.scratch, self.tell = models, scratch, tell
        # By content: an earlier attempt may have been of others.
        self.keys = [files_key(str(path)) for path in models]
        self.whole = [whole_folder(path, scratch / key, tell) for path, key in zip(models, self.keys, strict=True)]
        check_configs(models, self.whole)
        backbone = Backbone(path=str(self.whole[0]))
        if backbone.trained_for() is not LANGUAGE:
            raise UserError(
                f"{models[0]} is no language model, which alone have a loss on text: take another --method."
            )
        config: Any = backbone.read_config().get_text_config(decoder=True)
        longest = min(LONGEST, getattr(config, "max_position_embeddings", None) or LONGEST)
        self.held_out = HeldOut(documents(str(self.whole[0])), longest)
        if len(self.held_out) < 2:
            raise UserError(
                f"--data holds {len(self.held_out)} pieces of up to {longest} tokens with a loss, and a paired test "
                "takes two at least, better a hundred: give more text."
            )
        tell(f"{len(self.held_out):,} pieces of text, {self.held_out.num_tokens.sum():,} tokens in the loss")

    def make(self, output: Path) -> list[Tried]:
        """Try all, write the result and what it is made of."""
        answers = Answers(self.scratch)

        def losses(numbers: Sequence[int]) -> Losses:
            key = key_of("soup", self.held_out.key, [self.keys[number] for number in numbers])
            if key not in answers:
                answers.add(key, self._measure(numbers).values.tolist())
            return Losses(np.array(answers[key]), self.held_out.num_tokens)

        tried = greedy_soup(len(self.models), losses)
        answers.close()
        names = [str(path) for path in self.models]
        self.tell(table(tried, names))
        result = self._mean([each.number for each in tried if each.kept])
        (result / REPORT).write_text(json.dumps([_row(each, names) for each in tried], indent=1) + "\n")
        result.replace(output)
        return tried

    def _measure(self, numbers: Sequence[int]) -> Losses:
        folder = self.whole[numbers[0]] if len(numbers) == 1 else self._mean(numbers)
        losses = self.held_out.losses(LocalEngine(str(folder), field="MODEL").network)
        self.tell(f"loss {losses.mean:.5f}: {' + '.join(str(self.models[number]) for number in numbers)}")
        return losses

    def _mean(self, numbers: Sequence[int]) -> Path:
        folder = self.scratch / "mean"
        shutil.rmtree(folder, ignore_errors=True)
        chosen = [self.whole[number] for number in numbers]
        write_merged(chosen, None, folder, _mean_of(chosen), lambda line: None)
        return folder


def _mean_of(models: Sequence[Path]) -> Merging:
    return Merging("linear", (1.0,) * len(models))


def _row(tried: Tried, names: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": names[tried.number], "kept": tried.kept, "own_loss": _with_interval(tried.own)}
    if tried.soup is not None and tried.difference is not None:
        row |= {"loss_with_it": _with_interval(tried.soup), "difference": tried.difference._asdict(), "p": tried.p}
    return row


def _with_interval(losses: Losses) -> list[float]:
    return [losses.mean, *losses.interval]
