"""What DataModules over packed rows share: sources, tokenizing, packing, loaders, and a position to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from datamodules.cache import cache_root, key_of
from datamodules.encoding.tokenization import tokenize
from datamodules.errors import DataError
from datamodules.resumption import check_same_rows
from datamodules.serving.collate import PackedCollator, PromptCollator
from datamodules.serving.dataset import Documents, PackedRows, Prompts
from datamodules.serving.loader import EvaluationLoader, ResumableLoader
from datamodules.serving.order import SequentialOrder, ShuffledOrder
from datamodules.serving.preview import preview
from datamodules.sources.bad_records import OnBadRecord
from datamodules.sources.discover import Source, files_in_words, paths_of, sources_to_validate_on
from datamodules.sources.units import Unit
from datamodules.storage.held_out import unlike_share
from datamodules.storage.rows import RowIndex, Selection, TooLong, hashes_of, pack_rows, split_documents
from datamodules.storage.shards import Encoder, Shard
from datamodules.storage.statistics import check_any, facts_of, notes_in_words, skipped_in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Packed: TypeAlias = list[tuple[RowIndex, list[Shard]]]  # for each source its rows, and what they point into


class PackedDataModule(LightningDataModule):
    """Reads sources, tokenizes them once, packs them into full rows, and serves those in a resumable order.

    A subclass says how its records are read (`find_units`, `peek`) and tokenized (`make_encoder`), and what `predict`
    goes on from (`make_prompts`).

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        tokenizer: a hub id, a folder or a `.gguf` file.
        seq_len: T, tokens of a row.
        batch_size: B, rows of a micro-batch on one rank.
        val_share: share of the documents kept for validation, at least one document; 0 for none. None: where names of
            files say that they are for validation, these validate (see `sources.Source`), else `default_val_share`.
            Excludes `val_path`.
        val_path: what to validate on instead, all of it; of a folder with splits what is for validation or testing.
        document_mask: True: documents that share a row do not see each other. False: a row is read as one document.
        seed: names the order of training.
        num_workers: processes that read ahead. 0 by default: a batch is read in well under a
            millisecond; one or two hide the latency of a network disk.
        on_bad_record: what to do with a record that cannot be learned from: `stop` with its file and line, or `skip`
            and count it.
        cache_dir: where tokens are kept. None: `$LLM_LIGHTNING_CACHE`, else `~/.cache/llm-lightning`.

    Attributes:
        tokenizer: the tokenizer, once `setup` ran.
        statistics: for `train` and `val` what packing did, once `setup` ran; see `facts_of`.
    """

    default_val_share = 0.01
    too_long: TooLong = "split"
    sources: Sequence[Source] | None = None
    new_tokens: Sequence[str] = ()
    """Control tokens that the network gets and its tokenizer has not; set it before anything is read."""
    added: Sequence[Source] = ()
    """What else is trained on: nothing of it validates, and what asks a question of validation is left out."""
    added_share = 0.5
    """The share of the rows that come from there, at most; the first ones are taken."""

    def __init__(
        self,
        path: str | list[str] | None = None,
        tokenizer: str | None = None,
        seq_len: int = 1024,
        batch_size: int = 8,
        val_share: float | None = None,
        val_path: str | list[str] | None = None,
        document_mask: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.tokenizer_name = tokenizer
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.val_share = val_share
        self.val_path = val_path
        self.document_mask = document_mask
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_record = on_bad_record
        self.cache_dir = cache_dir
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.statistics: dict[str, dict[str, float]] = {}
        self._train: Packed = []
        self._val: Packed = []
        self._units: dict[str, list[list[Unit]]] = {}
        self.selections: dict[str, Selection] = {}
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

    def find_units(self, source: Any, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read in a source."""
        raise NotImplementedError

    def make_tokenizer(self, units: list[Unit], root: Path) -> PreTrainedTokenizerFast:
        """The tokenizer for data and model; `units` are all that is trained on."""
        raise NotImplementedError

    def make_encoder(self, tokenizer: PreTrainedTokenizerFast) -> Encoder:
        """What makes documents of records."""
        raise NotImplementedError

    def make_prompts(self, sources: Packed) -> Prompts:
        """What `predict` goes on from."""
        raise NotImplementedError

    def make_rows(self, sources: Packed) -> PackedRows:
        """The rows to read."""
        return PackedRows(sources)

    def make_collator(self) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """What makes a batch of rows."""
        return PackedCollator(self.seq_len, self._pad_token_id, self.document_mask)

    def in_words(self, facts: dict[str, float]) -> str:
        """One of `statistics` as a line to read."""
        raise NotImplementedError

    def check(self) -> None:
        """Looks at the settings and at the first records of each source, in well under a second for local files.

        Raises:
            DataError: what is wrong, and the way out.
        """
        self.check_settings()
        for sources in (self._train_sources, self._val_sources):
            for source in sources():
                self.peek(source, cache_root(self.cache_dir))

    def check_settings(self) -> None:
        """Raises `DataError` for settings that exclude each other or lie outside of their range."""
        if (self.path is None) == (self.sources is None):
            given = "both are" if self.path is not None else "neither is"
            raise DataError(f"path and sources: give one of them ({given} given)")
        if not (self.path or self.sources):
            raise DataError("path: it names nothing to read")
        if len({source.weight is None for source in self._train_sources()}) > 1:
            raise DataError("sources: give a weight to all of them or to none")
        if any(weight <= 0 for weight in self._weights() or ()):
            raise DataError("sources: a weight must be above 0; leave out what is not to be read")
        if self.val_path is not None and self.val_share is not None:
            raise DataError("val_path and val_share: give one of them (both are given)")
        for name, (value, least) in self._limits().items():
            if value < least:
                raise DataError(f"{name}: it must be at least {least}, not {value}")
        if not 0 <= (self.val_share or 0) < 1:
            raise DataError(f"val_share: it must be at least 0 and below 1, not {self.val_share}")

    def _limits(self) -> dict[str, tuple[int, int]]:
        """The least value of each number; one token has no next one to predict."""
        return {"seq_len": (self.seq_len, 2), "batch_size": (self.batch_size, 1), "num_workers": (self.num_workers, 0)}

    def _weights(self) -> list[float] | None:
        weights = [source.weight for source in self._train_sources() if source.weight is not None]
        return weights or None

    def _train_sources(self) -> Sequence[Source]:
        return self.sources if self.sources is not None else [self.source_of(path) for path in paths_of(self.path)]

    def _val_sources(self) -> Sequence[Source]:
        named = [self.val_source_of(path) for path in paths_of(self.val_path)]
        return sources_to_validate_on(self._train_sources(), named or None, self.val_share)

    def prepare_data(self) -> None:
        """Builds what the cache lacks; Lightning calls it on one process of each node."""
        self.check()
        self._build(look_again=True)

    def setup(self, stage: str) -> None:
        """Opens the tokenizer and the rows, from the cache where `prepare_data` ran."""
        if self.tokenizer is None:
            self._build(look_again=False)
        self._position, self._train_loader = 0, None  # a checkpoint's state comes after this
        self._describe()

    def _build(self, look_again: bool) -> None:
        root = cache_root(self.cache_dir)
        train_units = [self.find_units(source, root, look_again) for source in self._train_sources()]
        val_units = [self.find_units(source, root, look_again) for source in self._val_sources()]
        if look_again:
            for line in files_in_words(self._train_sources(), self.val_path is None and self.val_share is None):
                rank_zero_info(line)
        tokenizer = self.make_tokenizer([unit for units in train_units for unit in units], root)
        added_units = [self.find_units(source, root, look_again) for source in self.added]
        units = [unit for units in [*train_units, *val_units, *added_units] for unit in units]
        shards = iter(tokenize(units, self.make_encoder(tokenizer), root, self.on_bad_record))
        train_shards = [[next(shards) for _ in units] for units in train_units]
        val_shards = [[next(shards) for _ in units] for units in val_units]
        self._pack(train_shards, val_shards, [[next(shards) for _ in units] for units in added_units])
        self.tokenizer = tokenizer
        self._units = {"train": train_units, "val": val_units or train_units}

    def _pack(
        self, train_shards: list[list[Shard]], val_shards: list[list[Shard]], added_shards: list[list[Shard]]
    ) -> None:
        share = self.default_val_share if self.val_share is None else self.val_share
        share = 0.0 if val_shards else share
        check_any("path", self._train_sources(), train_shards)
        check_any("val_path", self._val_sources(), val_shards)
        train, val = self.split([shard for shards in train_shards for shard in shards], share)
        if val_shards:
            val = Selection()
        else:
            val_shards = train_shards if share else []
        self._train = [(self._rows(shards, train), shards) for shards in train_shards]
        self._val = [(self._rows(shards, val), shards) for shards in val_shards]
        for source, (index, _) in zip(self._train_sources(), self._train, strict=True):
            self._check_not_empty(source, index.facts)
        if self._val and not sum(index.facts["num_rows"] for index, _ in self._val):
            rank_zero_warn(f"Nothing validates: all that was held out is longer than a row (seq_len={self.seq_len}).")
        self.selections = {"train": train, "val": val}
        num_train, num_val = (sum(index.facts["num_documents"] for index, _ in s) for s in (self._train, self._val))
        if words := unlike_share(share, num_val, num_train + num_val):
            rank_zero_warn(words)
        if added_shards:
            held_out = Selection(exceptions=hashes_of([shard for shards in val_shards for shard in shards], val))
            self._train += [(self._rows(shards, held_out), shards) for shards in added_shards]

    def split(self, shards: list[Shard], share: float) -> tuple[Selection, Selection]:
        """What trains and what validates."""
        return split_documents(shards, share)

    def _rows(self, shards: list[Shard], selection: Selection) -> RowIndex:
        return pack_rows(shards, selection, self.seq_len, cache_root(self.cache_dir), self.too_long)

    def _check_not_empty(self, source: Source, facts: dict[str, int]) -> None:
        if facts["num_rows"] or (len(self._train) > 1 and not source.weight):
            return
        if facts["num_documents"]:
            raise DataError(
                f"seq_len: all {facts['num_documents']:,} documents of {source.path!r} are longer than"
                f" {self.seq_len} tokens, and too_long={self.too_long} leaves nothing of them; raise seq_len"
            )
        raise DataError(
            f"val_share: all of {source.path!r} falls to validation, as it is one document or copies of one;"
            " give more text, a val_path, or val_share=0"
        )

    def _describe(self) -> None:
        parts = {"train": self._train, "val": self._val}
        self.statistics = {name: facts_of(part, self.seq_len) for name, part in parts.items() if part}
        rank_zero_info(f"Data (cache: {cache_root(self.cache_dir)})")
        for name, facts in self.statistics.items():
            rank_zero_info(f"  {name}: {self.in_words(facts)}")
        shards = [shard for part in parts.values() for _, shards in part for shard in shards]
        for line in notes_in_words(shards):
            rank_zero_info(f"  {line}")
        if skipped := skipped_in_words(shards):
            rank_zero_warn(skipped)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches without end, from where the checkpoint left off: `input_ids`, `labels`, `position_ids`."""
        rows = self.make_rows(self._train)
        per_batch = self.batch_size * self._data_ranks()["num_ranks"]
        order = ShuffledOrder(*self._mixture(rows.num_rows), self.seed)
        if self.trainer is not None and (limit := self.trainer.overfit_batches):  # type: ignore[attr-defined]
            wanted = limit * per_batch if isinstance(limit, int) else int(limit * len(rows))
            order = ShuffledOrder([max(1, min(wanted, len(rows)))], seed=self.seed)
        if order.epoch_len < per_batch:
            rank_zero_warn(
                f"The data has {order.epoch_len} rows of {self.seq_len} tokens, fewer than a batch of all ranks"
                f" ({per_batch}): the others are blank. Lower batch_size or seq_len, or give more text."
            )
        if self.trainer is not None:
            self._log_statistics(self.trainer)
        self._train_loader = self._loader(ResumableLoader, rows, order, position=self.position)
        return self._train_loader

    def _mixture(self, num_rows: list[int]) -> tuple[list[int], list[float] | None]:
        """How many rows of each source an epoch draws from, and the sources' weights."""
        weights, num_real = self._weights(), len(num_rows) - len(self.added)
        real = sum(num_rows[:num_real])
        room = int(real * self.added_share / (1 - self.added_share))
        counts = num_rows[:num_real]
        for rows in num_rows[num_real:]:
            counts.append(min(rows, room))
            room -= counts[-1]
        if weights is not None:
            weights += [sum(weights) * count / real for count in counts[num_real:]]
        return counts, weights

    def row_counts(self) -> tuple[list[int], list[int]]:
        """How many rows an epoch draws from, of each source and of each one in `added`."""
        counts, _ = self._mixture(self.make_rows(self._train).num_rows)
        num_real = len(counts) - len(self.added)
        return counts[:num_real], counts[num_real:]

    def val_dataloader(self) -> EvaluationLoader | list:
        """The validation rows in a fixed order, equally many batches on each rank (blank rows fill the last)."""
        if not self._val:
            return []
        rows = self.make_rows(self._val)
        multiple = self.batch_size * self._data_ranks()["num_ranks"]
        return self._loader(EvaluationLoader, rows, SequentialOrder(len(rows), multiple))

    def test_dataloader(self) -> EvaluationLoader | list:
        """The validation rows."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader | list:
        """What to go on from in the validation documents: `prompt_ids`, `attention_mask`."""
        if not self._val:
            return []
        prompts = self.make_prompts(self._val)
        ranks = self._data_ranks()
        order = SequentialOrder(len(prompts), self.batch_size * ranks["num_ranks"])
        return EvaluationLoader(prompts, order, PromptCollator(self._pad_token_id), self.batch_size, **ranks)

    def preview(self, num_records: int) -> Iterator[str]:
        """Lines to print: the first training documents as the model will see them, and the statistics of all."""
        assert self.tokenizer is not None
        return preview(Documents(self._train), self.tokenizer, num_records)

    def _loader(self, kind: type, rows: PackedRows, order: ShuffledOrder | SequentialOrder, position: int = 0) -> Any:
        ranks = self._data_ranks()
        return kind(
            rows, order, self.make_collator(), self.batch_size, **ranks, num_workers=self.num_workers, position=position
        )

    @property
    def _pad_token_id(self) -> int:
        assert self.tokenizer is not None
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _data_ranks(self) -> dict[str, Any]:
        """This process's place among those that read different data: the ranks of a tensor-parallel group share it."""
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return {"rank": ranks["rank"], "num_ranks": ranks["num_replicas"]} if ranks else {"rank": 0, "num_ranks": 1}

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers: `path`, `rows` (named by their content) and the statistics."""
        rows = [index.folder.name for index, _ in self._train]
        return {"path": self.path, "rows": rows, **self.statistics.get("train", {})}

    @rank_zero_only
    def _log_statistics(self, trainer: Trainer) -> None:
        if trainer.ckpt_path is not None:  # the run that goes on has them, and its step may not be known yet
            return
        names = ("num_tokens", "num_dropped", "padded_share", "trained_share", "too_long_share")
        metrics = {f"data/{name}": float(self.statistics["train"][name]) for name in names}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    @property
    def position(self) -> int:
        """Samples of all ranks that training has been given so far: the global sample index of the next one."""
        return self._train_loader.position if self._train_loader is not None else self._position

    def state_dict(self) -> dict[str, int | str]:
        """The global sample index, and what it counts in.

        Lightning keeps the loader's own state too, but puts it back only in mid-epoch.
        """
        per_batch = self.batch_size * self._data_ranks()["num_ranks"]
        return {"position": self.position, "rows": self._rows_key(), "per_batch": per_batch}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on from the checkpoint's position; raises `DataError` where it means nothing here."""
        check_same_rows(state, self.state_dict(), self.trainer)
        self._position, self._train_loader = int(state["position"]), None

    def _rows_key(self) -> str:
        mixture = [self.added_share] if self.added else []
        return key_of(self.seed, self._weights(), [index.folder.name for index, _ in self._train], *mixture)
