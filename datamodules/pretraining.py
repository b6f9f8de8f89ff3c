"""Text for pretraining: from anything that holds text to shuffled, packed, resumable batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from datamodules.cache import cache_root, key_of
from datamodules.collate import PackedCollator, PromptCollator
from datamodules.dataset import PackedRows, Prompts
from datamodules.errors import DataError
from datamodules.facts import facts_of, in_words, skipped_in_words
from datamodules.loader import EvaluationLoader, ResumableLoader
from datamodules.order import SequentialOrder, ShuffledOrder
from datamodules.rows import RowIndex, Selection, pack_rows, split_documents
from datamodules.shards import Shard
from datamodules.sources import Source, peek, resolve
from datamodules.texts import OnBadRecord
from datamodules.tokenization import tokenize
from datamodules.tokenizer import SMALLEST_VOCAB, framing, load_tokenizer, trained_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_VOCAB_SIZE = 8192
DEFAULT_VAL_SHARE = 0.01


class TextDataModule(LightningDataModule):
    """Learns from text: reads it, tokenizes it once, packs it into full rows, and serves it in a resumable order.

    Text comes from `path` or `sources`. Reading: .txt, .jsonl, .json, .csv (also .gz, .zst), .parquet, .arrow, folders
    and globs of them, the embedded corpus `python_docs`, and data sets of the Hugging Face hub (`owner/name`).

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        sources: the same with weights and options for each; excludes `path`.
        text_column: where a record's text is. None: `text`, else the only column that holds strings.
        tokenizer: a hub id, a folder or a `.gguf` file. None: a byte-level BPE is trained from the text.
        vocab_size: tokens of a trained tokenizer, 8,192 by default: a small model's embeddings stay small. A small
            corpus may yield fewer. Excludes `tokenizer`.
        seq_len: T, tokens of a row. Longer documents are cut into several rows, shorter ones packed together.
        batch_size: B, rows of a micro-batch on one rank.
        val_share: share of the documents kept for validation, 0.01 by default, at least one document; 0 for none.
            Excludes `val_path`.
        val_path: what to validate on instead, all of it.
        document_mask: True: documents that share a row do not see each other. False: a row is read as one document.
        seed: names the order of training.
        num_workers: processes that read ahead. 0 by default: a batch is read in well under a
            millisecond; one or two hide the latency of a network disk.
        on_bad_record: what to do with a broken record, one that is not UTF-8, or one without text: `stop` with its
            file and line, or `skip` and count it.
        prompt_len: tokens of a document's beginning that `predict` goes on from.
        cache_dir: where tokens are kept. None: `$LLM_LIGHTNING_CACHE`, else `~/.cache/llm-lightning`.

    Attributes:
        tokenizer: the tokenizer, once `setup` ran.
        statistics: for `train` and `val` what packing did, once `setup` ran: `num_documents`, `num_tokens`,
            `num_rows`, `padded_share`, `cut_share`, `bytes_per_token`; see `facts_of`.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        sources: list[Source] | None = None,
        text_column: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        seq_len: int = 1024,
        batch_size: int = 8,
        val_share: float | None = None,
        val_path: str | list[str] | None = None,
        document_mask: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: OnBadRecord = "stop",
        prompt_len: int = 32,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.sources = sources
        self.text_column = text_column
        self.tokenizer_name = tokenizer
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.val_share = val_share
        self.val_path = val_path
        self.document_mask = document_mask
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_record = on_bad_record
        self.prompt_len = prompt_len
        self.cache_dir = cache_dir
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.statistics: dict[str, dict[str, float]] = {}
        self._train: list[tuple[RowIndex, list[Shard]]] = []
        self._val: list[tuple[RowIndex, list[Shard]]] = []
        self._position = 0
        self._train_loader: ResumableLoader | None = None

    def check(self) -> None:
        """Looks at the settings and at the first records of each source, in well under a second for local files.

        Raises:
            DataError: what is wrong, and the way out.
        """
        self._check_settings()
        for source in [*self._train_sources(), *self._sources_of(self.val_path)]:
            peek(source, cache_root(self.cache_dir), self.on_bad_record)

    def _check_settings(self) -> None:
        if (self.path is None) == (self.sources is None):
            given = "both are" if self.path is not None else "neither is"
            raise DataError(f"path and sources: give one of them ({given} given)")
        if not (self.path or self.sources):
            raise DataError("path: it names nothing to read")
        if self.sources is not None and self.text_column is not None:
            raise DataError("text_column: with sources, name it in the source that it belongs to")
        if len({source.weight is None for source in self._train_sources()}) > 1:
            raise DataError("sources: give a weight to all of them or to none")
        if any(weight <= 0 for weight in self._weights() or ()):
            raise DataError("sources: a weight must be above 0; leave out what is not to be read")
        if self.val_path is not None and self.val_share is not None:
            raise DataError("val_path and val_share: give one of them (both are given)")
        if self.tokenizer_name is not None and self.vocab_size is not None:
            raise DataError("tokenizer and vocab_size: a named tokenizer has its vocabulary; leave out vocab_size")
        limits = {
            "seq_len": (self.seq_len, 2),  # one token has no next one to predict
            "batch_size": (self.batch_size, 1),
            "vocab_size": (self.vocab_size or DEFAULT_VOCAB_SIZE, SMALLEST_VOCAB),
            "prompt_len": (self.prompt_len, 1),
            "num_workers": (self.num_workers, 0),
        }
        for name, (value, least) in limits.items():
            if value < least:
                raise DataError(f"{name}: it must be at least {least}, not {value}")
        if not 0 <= (self.val_share or 0) < 1:
            raise DataError(f"val_share: it must be at least 0 and below 1, not {self.val_share}")

    def _weights(self) -> list[float] | None:
        weights = [source.weight for source in self._train_sources() if source.weight is not None]
        return weights or None

    def _train_sources(self) -> list[Source]:
        return self.sources if self.sources is not None else self._sources_of(self.path)

    def _sources_of(self, path: str | list[str] | None) -> list[Source]:
        paths = [path] if isinstance(path, str) else path or []
        return [Source(path, text_column=self.text_column) for path in paths]

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
        train_units = [resolve(source, root, look_again) for source in self._train_sources()]
        val_units = [resolve(source, root, look_again) for source in self._sources_of(self.val_path)]
        if self.tokenizer_name is not None:
            tokenizer = load_tokenizer(self.tokenizer_name)
        else:
            units = [unit for units in train_units for unit in units]
            vocab_size = self.vocab_size or DEFAULT_VOCAB_SIZE
            tokenizer = trained_tokenizer(units, vocab_size, root, self.on_bad_record)
        units = [unit for units in [*train_units, *val_units] for unit in units]
        shards = iter(tokenize(units, tokenizer, root, self.on_bad_record))
        train_shards = [[next(shards) for _ in units] for units in train_units]
        val_shards = [[next(shards) for _ in units] for units in val_units]
        self._pack(train_shards, val_shards)
        self.tokenizer = tokenizer

    def _pack(self, train_shards: list[list[Shard]], val_shards: list[list[Shard]]) -> None:
        root = cache_root(self.cache_dir)
        share = 0.0 if self.val_path is not None else DEFAULT_VAL_SHARE if self.val_share is None else self.val_share
        everything = [shard for shards in train_shards for shard in shards]
        train, val = split_documents(everything, share)
        if self.val_path is None:
            val_shards = train_shards if share else []
        else:
            val = Selection()
        self._train = [(pack_rows(shards, train, self.seq_len, root), shards) for shards in train_shards]
        self._val = [(pack_rows(shards, val, self.seq_len, root), shards) for shards in val_shards]
        for source, (index, shards) in zip(self._train_sources(), self._train, strict=True):
            if not any(shard.facts["num_documents"] for shard in shards):
                raise DataError(f"path: there is no text in {source.path!r}")
            if index.facts["num_rows"] == 0 and (source.weight or len(self._train) == 1):
                raise DataError(
                    f"val_share: all of {source.path!r} falls to validation, as it is one document or copies of one;"
                    " give more text, a val_path, or val_share=0"
                )

    def _describe(self) -> None:
        parts = {"train": self._train, "val": self._val}
        self.statistics = {name: facts_of(part, self.seq_len) for name, part in parts.items() if part}
        rank_zero_info(f"Data (cache: {cache_root(self.cache_dir)})")
        for name, facts in self.statistics.items():
            rank_zero_info(f"  {name}: {in_words(facts, self.seq_len)}")
        shards = [shard for part in parts.values() for _, shards in part for shard in shards]
        if skipped := skipped_in_words(shards):
            rank_zero_warn(skipped)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches without end, from where the checkpoint left off: `input_ids`, `labels`, `position_ids`."""
        rows = PackedRows(self._train)
        per_batch = self.batch_size * self._data_ranks()["num_ranks"]
        order = ShuffledOrder(rows.num_rows, self._weights(), self.seed)
        if self.trainer is not None and (limit := self.trainer.overfit_batches):  # type: ignore[attr-defined]
            wanted = limit * per_batch if isinstance(limit, int) else int(limit * len(rows))
            order = ShuffledOrder([max(1, min(wanted, len(rows)))], seed=self.seed)
        if order.epoch_len < per_batch:
            rank_zero_warn(
                f"The data has {order.epoch_len} rows of {self.seq_len} tokens, fewer than a batch of all ranks"
                f" ({per_batch}): rows repeat within it. Lower batch_size or seq_len, or give more text."
            )
        if self.trainer is not None:
            self._log_statistics(self.trainer)
        self._train_loader = self._loader(ResumableLoader, rows, order, position=self.position)
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader | list:
        """The validation rows in a fixed order, equally many batches on each rank (blank rows fill the last)."""
        if not self._val:
            return []
        rows = PackedRows(self._val)
        multiple = self.batch_size * self._data_ranks()["num_ranks"]
        return self._loader(EvaluationLoader, rows, SequentialOrder(len(rows), multiple))

    def test_dataloader(self) -> EvaluationLoader | list:
        """The validation rows."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader | list:
        """The beginnings of the validation documents, to go on from: `prompt_ids`, `attention_mask`."""
        if not self._val:
            return []
        assert self.tokenizer is not None
        prompts = Prompts(self._val, self.prompt_len, num_suffix=len(framing(self.tokenizer).suffix))
        ranks = self._data_ranks()
        order = SequentialOrder(len(prompts), self.batch_size * ranks["num_ranks"])
        return EvaluationLoader(prompts, order, PromptCollator(self._pad_token_id), self.batch_size, **ranks)

    def _loader(self, kind: type, rows: PackedRows, order: ShuffledOrder | SequentialOrder, position: int = 0) -> Any:
        collate = PackedCollator(self.seq_len, self._pad_token_id, self.document_mask)
        ranks = self._data_ranks()
        return kind(rows, order, collate, self.batch_size, **ranks, num_workers=self.num_workers, position=position)

    @property
    def _pad_token_id(self) -> int:
        assert self.tokenizer is not None
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _data_ranks(self) -> dict[str, int]:
        """This process's place among those that read different data: the ranks of a tensor-parallel group share it."""
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return {"rank": ranks["rank"], "num_ranks": ranks["num_replicas"]} if ranks else {"rank": 0, "num_ranks": 1}

    @rank_zero_only
    def _log_statistics(self, trainer: Trainer) -> None:
        facts = self.statistics["train"]
        metrics = {f"data/{name}": float(facts[name]) for name in ("num_tokens", "padded_share", "cut_share")}
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
        return {"position": self.position, "rows": self._rows_key()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on from the checkpoint's position."""
        self._position, self._train_loader = int(state["position"]), None
        if state["rows"] != self._rows_key():
            rank_zero_warn(
                "The data, its settings or its seed are not those of the checkpoint: training goes on from the same"
                " position, but in another order."
            )

    def _rows_key(self) -> str:
        return key_of(self.seed, self._weights(), [index.folder.name for index, _ in self._train])
