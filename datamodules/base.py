"""What all DataModules share: settings and their checks, sources, loaders of a rank, and a position to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from datamodules.cache import cache_root
from datamodules.contract import BatchKind
from datamodules.errors import DataError
from datamodules.records.contamination import TrainingTexts
from datamodules.records.text_source import TextSource, text_units, texts_of
from datamodules.serving.collate import SourceCollator
from datamodules.serving.dataset import NumberedRows
from datamodules.serving.loader import EvaluationLoader, Order, ResumableLoader
from datamodules.serving.orders.order import SequentialOrder
from datamodules.serving.orders.schedule import check_weights, is_scheduled
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.discover import Source, files_in_words, paths_of, sources_to_validate_on

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Collate = Callable[[Sequence[Any]], Mapping[str, Any]]

WAYS_OUT = "take another folder by --trainer.default_root_dir, or start over with --resume false"


class ResumableDataModule(LightningDataModule):
    """Reads sources once into a cache, and serves them in an order that resumes at any sample.

    A subclass says how a source is read (`source_of`, `peek`), what is built of all (`build`), and what is served.

    Args:
        path: what to read; several paths are read as one.
        tokenizer: a hub id, a folder or a `.gguf` file.
        batch_size: B, samples of a micro-batch on one rank.
        val_share: share of the documents or prompts kept for validation, at least one; 0 for none. None: where names of
            files say that they are for validation, these validate (see `discover.Source`), else `default_val_share`.
            Excludes `val_path`.
        val_path: what to validate on instead, all of it; of a folder with splits what is for validation or testing.
        seed: names the order of training.
        num_workers: processes that read ahead. 0 by default: a batch is read in well under a millisecond; one or two
            hide the latency of a network disk.
        on_bad_record: what to do with a record that cannot be trained on: `stop` with its file and line, or `skip`
            and count it.
        cache_dir: where tokens are kept. None: `$LLM_LIGHTNING_CACHE`, else `~/.cache/llm-lightning`.

    Attributes:
        tokenizer: the tokenizer, once the data is built.
    """

    batch_kind: BatchKind
    default_val_share = 0.01
    temperature: float | None = None
    mixes = False
    """Whether the weights of sources may change while they are read."""
    sources: Sequence[Source] | None = None
    new_tokens: Sequence[str] = ()
    """Control tokens that the network gets and its tokenizer has not; set it before anything is read."""

    def __init__(
        self,
        path: str | list[str] | None = None,
        tokenizer: str | None = None,
        batch_size: int = 8,
        val_share: float | None = None,
        val_path: str | list[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.tokenizer_name = tokenizer
        self.batch_size = batch_size
        self.val_share = val_share
        self.val_path = val_path
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_record = on_bad_record
        self.cache_dir = cache_dir
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self._position = 0
        self._train_loader: ResumableLoader | None = None

    def source_of(self, path: str) -> Source:
        """A path as a source, with the DataModule's own options."""
        raise NotImplementedError

    def val_source_of(self, path: str) -> Source:
        """The same of a path to validate on."""
        return self.source_of(path)

    def peek(self, source: Any, root: Path) -> None:
        """Look at a source's first records; raises `DataError`."""
        raise NotImplementedError

    def build(self, look_again: bool) -> None:
        """Opens the tokenizer and all data, and builds what the cache lacks.

        Args:
            look_again: False: take hub data sets as they were found last, so that all ranks see the same ones.
        """
        raise NotImplementedError

    def report(self) -> None:
        """Says what there is to train on."""
        raise NotImplementedError

    def rows_key(self) -> str:
        """Names what is trained on and its order: a position means the same wherever this is the same."""
        raise NotImplementedError

    @cached_property
    def train_sources(self) -> Sequence[Any]:
        """What is trained on."""
        if self.sources is not None:
            return [replace(source) for source in self.sources]  # copies, which look for their files anew
        return [self.source_of(path) for path in paths_of(self.path)]

    @cached_property
    def val_sources(self) -> Sequence[Any]:
        """What there is for validation alone."""
        named = [self.val_source_of(path) for path in paths_of(self.val_path)]
        return sources_to_validate_on(self.train_sources, named or None, self.val_share)

    def texts(self, path: str) -> Iterator[str]:
        """The texts of any path, as `TextDataModule` finds them there, for callbacks that learn from others than the
        run does.

        Raises:
            DataError: nothing is there, or a record cannot be read.
        """
        for unit in text_units(TextSource(path), self.root):
            yield from texts_of(unit, BadRecords(unit, self.on_bad_record))

    def training_texts(self) -> TrainingTexts:
        """All texts of the files that are trained on, of a part that validates too."""
        return TrainingTexts(self.train_sources, self.root, look_again=False)

    @property
    def weights(self) -> list[float] | None:
        """Of the sources, None where every sample is served once an epoch."""
        return [source.weight for source in self.train_sources if source.weight is not None] or None

    @property
    def root(self) -> Path:
        """The folder of the cache, by `cache_dir` and the environment."""
        return cache_root(self.cache_dir)

    def check(self) -> None:
        """Looks at the settings and at the first records of each source, in well under a second for local files.

        Raises:
            DataError: what is wrong, and the way out.
        """
        self.check_settings()
        for source in self.train_sources:
            self.peek(source, self.root)
        # What there is for validation is found in the training sources, which were found to be right by now.
        for source in self.val_sources:
            self.peek(source, self.root)

    def check_settings(self) -> None:
        """Raises `DataError` for settings that exclude each other or lie outside of their range."""
        if (self.path is None) == (self.sources is None):
            given = "both are" if self.path is not None else "neither is"
            raise DataError(f"path and sources: give one of them ({given} given)")
        if not (self.path or self.sources):
            raise DataError("path: it names nothing to read")
        check_weights(self.train_sources, self.temperature)
        if is_scheduled(self.train_sources) and not self.mixes:
            raise DataError(
                f"sources: {type(self).__name__} knows neither weight_schedule nor max_epochs; give a weight alone"
            )
        if self.val_path is not None and self.val_share is not None:
            raise DataError("val_path and val_share: give one of them (both are given)")
        for name, (value, least) in self.limits().items():
            if value < least:
                raise DataError(f"{name}: it must be at least {least}, not {value}")
        if not 0 <= (self.val_share or 0) < 1:
            raise DataError(f"val_share: it must be at least 0 and below 1, not {self.val_share}")

    def limits(self) -> dict[str, tuple[int, int]]:
        """Each number among the settings, and the least it may be."""
        return {"batch_size": (self.batch_size, 1), "num_workers": (self.num_workers, 0)}

    def share_to_hold_out(self) -> float:
        """How much of what is trained on validates; nothing where there is something for validation alone."""
        share = self.default_val_share if self.val_share is None else self.val_share
        return 0.0 if self.val_sources else share

    def prepare_data(self) -> None:
        """Builds what the cache lacks; Lightning calls it on one process of each node."""
        self.check()
        for line in files_in_words(self.train_sources, self.val_path is None and self.val_share is None):
            rank_zero_info(line)
        self.build(look_again=True)

    def setup(self, stage: str) -> None:
        """Opens the data, from the cache where `prepare_data` ran."""
        if self.tokenizer is None:
            self.build(look_again=False)
        self._position, self._train_loader = 0, None  # a checkpoint's state comes after this
        self.report()

    def training_loader(self, rows: Dataset, order: Order, collate: Collate, **options: Any) -> ResumableLoader:
        """Batches without end, from where the checkpoint left off; see `ResumableLoader` for the options."""
        self._train_loader = self._loader(ResumableLoader, rows, order, collate, position=self.position, **options)
        return self._train_loader

    def next_batch(self) -> Any:
        """The batch that training will be given next, perhaps of the next epoch; the position stays where it is."""
        assert self._train_loader is not None
        return self._train_loader.next_batch()

    def evaluation_loader(self, rows: Any, collate: Collate, num_rows: int | None = None) -> EvaluationLoader:
        """Rows in a fixed order, equally many batches on each rank (blank rows complete the last).

        Args:
            num_rows: so many of the first ones; None for all.
        """
        return self._evaluation_loader(rows, collate, [len(rows) if num_rows is None else num_rows])

    def evaluation_loader_by_source(self, rows: NumberedRows, collate: Collate) -> EvaluationLoader:
        """The same of rows of several sources: each batch of all ranks has those of one, and its `source_number`."""
        return self._evaluation_loader(rows, SourceCollator(collate, rows.num_rows), rows.num_rows)

    def _evaluation_loader(self, rows: Any, collate: Collate, num_rows: Sequence[int]) -> EvaluationLoader:
        return self._loader(EvaluationLoader, rows, SequentialOrder(num_rows, self.global_batch_size), collate)

    def _loader(self, kind: type, rows: Dataset, order: Order, collate: Collate, **options: Any) -> Any:
        workers = {"num_workers": self.num_workers}
        return kind(rows, order, collate, self.batch_size, **self.data_ranks(), **workers, **options)

    def val_dataloader(self) -> EvaluationLoader | list:
        """What is held out, in a fixed order."""
        raise NotImplementedError

    def test_dataloader(self) -> EvaluationLoader | list:
        """What is held out, as in validation."""
        return self.val_dataloader()

    @property
    def pad_token_id(self) -> int:
        """What batches are padded with."""
        assert self.tokenizer is not None
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def data_ranks(self) -> dict[str, int]:
        """This process's place among those that read different data: the ranks of a tensor-parallel group share it."""
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return {"rank": ranks["rank"], "num_ranks": ranks["num_replicas"]} if ranks else {"rank": 0, "num_ranks": 1}

    @property
    def global_batch_size(self) -> int:
        """Samples of a micro-batch of all ranks."""
        return self.batch_size * self.data_ranks()["num_ranks"]

    def rows_to_overfit(self, num_rows: int) -> int | None:
        """How many of the rows an epoch has under `trainer.overfit_batches`, the first ones; None for all."""
        limit = self.trainer.overfit_batches if self.trainer is not None else 0  # type: ignore[attr-defined]
        if not limit:
            return None
        wanted = limit * self.global_batch_size if isinstance(limit, int) else int(limit * num_rows)
        return max(1, min(wanted, num_rows))

    @property
    def position(self) -> int:
        """Samples of all ranks that training has been given so far: the global sample index of the next one."""
        return self._train_loader.position if self._train_loader is not None else self._position

    def state_dict(self) -> dict[str, int | str]:
        """The global sample index, and what it counts in.

        Lightning keeps the loader's own state too, but puts it back only in mid-epoch.
        """
        return {"position": self.position, "rows": self.rows_key(), "per_batch": self.global_batch_size}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on from the checkpoint's position; raises `DataError` where it means nothing here.

        What only validates, tests or predicts has no place in the training data, which may then be others.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_same_rows(state, self.state_dict(), self.trainer)
        self._position, self._train_loader = int(state["position"]), None


def check_same_rows(saved: Mapping[str, Any], own: Mapping[str, Any], trainer: Trainer | None) -> None:
    """Compare what two `state_dict`s of a DataModule say of the rows and of the batches that are made of them.

    Args:
        saved: the checkpoint's; one that an earlier version wrote says less.
        own: that of the data as they are now.
        trainer: whose run it is; it knows whether epochs are counted.

    Raises:
        DataError: the rows are others, or an epoch of theirs is cut into other batches.
    """
    if saved.get("rows", own["rows"]) != own["rows"]:
        raise DataError(
            "The data, its settings or its seed are not those of the checkpoint, so that its place in them means "
            f"nothing: give those again, {WAYS_OUT}. To train its weights on other data, name its model folder by "
            "--model.backbone.path in a new run."
        )
    counts_epochs = trainer is not None and trainer.max_epochs not in (None, -1)
    before, now = saved.get("per_batch", own["per_batch"]), own["per_batch"]
    if counts_epochs and before != now:
        raise DataError(
            f"batch_size: the checkpoint's epoch is counted in batches of {before} rows over all ranks, and they are "
            f"of {now} now, so that it would end in the wrong place. Give a batch_size that makes {before} of all "
            f"ranks again, count trainer.max_steps with trainer.max_epochs=-1, {WAYS_OUT}."
        )
