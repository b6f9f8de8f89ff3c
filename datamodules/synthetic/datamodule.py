"""Real data and what a model makes of it, in one DataModule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.cache import build_lock, cache_root, key_of
from datamodules.chat import ChatDataModule
from datamodules.errors import DataError
from datamodules.preference import PreferenceDataModule
from datamodules.records.record_source import RecordSource
from datamodules.synthetic.calls import CachedEngine, CallLog
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.engine import Engine
from datamodules.synthetic.filters.decontamination import Decontamination
from datamodules.synthetic.filters.filter import Context, Filter
from datamodules.synthetic.filters.seed_similarity import SeedSimilarity
from datamodules.synthetic.funnel import Funnel, run_filters
from datamodules.synthetic.generation import Generation, process_number
from datamodules.synthetic.generators import RecordGenerator
from datamodules.synthetic.identity import settings_of
from datamodules.synthetic.report import write_report
from datamodules.synthetic.result import key_of_result, write_result
from datamodules.synthetic.seeds import Seeds, prompt_seeds, training_seeds

VERSION = 1  # of what becomes of the filters' records
SMALL_SHARE = 0.05


class SyntheticDataModule(LightningDataModule):
    """Enlarges instruction or preference data by what a model writes: generators make records of the training records,
    filters drop the bad ones, and training draws from both. Validation stays real.

    Generation happens once, in `prepare_data` or by `llm-lightning augment`, by as many processes as are started on one
    `folder`. Everything a model was asked is kept there: a run that was killed goes on, and changed filters ask nothing
    again.

    Without real data (`data` names no path), generators begin with prompts of their own (`path`), and what they make is
    all that is trained on. It is split as any data, unless a `val_path` is named.

    Args:
        data: the real data, and what is made of a record.
        generators: what makes new records, by name.
        filters: what new records have to pass, in this order.
        engine: the model that writes; where none is named, the command line takes a `LocalEngine` of the network that
            is trained (`model.backbone.path`).
        share: so much of the training rows is synthetic, at most; 0 generates nothing.
        folder: for the calls, the result (`synthetic.parquet`) and the report (`report.html`, `report.json`).
        seed: added to each generator's: with another one the same settings take other prompts and write other texts.
    """

    def __init__(
        self,
        data: ChatDataModule,
        generators: dict[str, RecordGenerator],
        filters: list[Filter] | None = None,
        engine: Engine | None = None,
        share: float = 0.5,
        folder: str = "runs/synthetic",
        seed: int = 0,
    ) -> None:
        self.data = data
        super().__init__()
        self.is_all_synthetic = data.path is None and data.sources is None
        self.generators = generators
        for generator in generators.values():
            generator.seed += seed
        self.filters = filters or []
        self.engine = engine
        self.share = share
        self.folder = Path(folder)
        if self.is_all_synthetic:
            data.path = str(self.result)

    def __getattr__(self, name: str) -> Any:
        """What modules and callbacks ask of the real data (`tokenizer`, `seq_len`, `example_prompts`, ...)."""
        if name.startswith("_") or name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    @property
    def trainer(self) -> Trainer | None:
        """That of the real data, which serves the batches."""
        return self.data.trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.data.trainer = trainer

    @property
    def result(self) -> Path:
        """The file of the records that passed the filters."""
        return self.folder / "synthetic.parquet"

    @property
    def _makes_pairs(self) -> bool:
        return isinstance(self.data, PreferenceDataModule)

    def check(self) -> None:
        """Look at the settings and at the first real records.

        Raises:
            DataError: what is wrong, and the way out.
        """
        if not 0 <= self.share < 1:
            raise DataError(f"share: it must be at least 0 and below 1, not {self.share}")
        if not self.generators:
            raise DataError("generators: none is named, so there is nothing to add")
        for name, generator in self.generators.items():
            if not name.replace("_", "").replace("-", "").isalnum():
                raise DataError(f"generators: the name {name!r} is to be a folder's; use letters, digits, _ and -")
            if generator.makes_pairs(self._makes_pairs) != self._makes_pairs:
                wanted = "preference pairs" if self._makes_pairs else "conversations"
                raise DataError(
                    f"generators: {name} ({type(generator).__name__}) makes no {wanted}, which "
                    f"{type(self.data).__name__} learns from; "
                    + (
                        "use PreferencePairs, or ConstitutionalRevision with pairs=true"
                        if self._makes_pairs
                        else "use it with a PreferenceDataModule"
                    )
                )
        if self.engine is None:
            raise DataError("engine: none is named; give an OpenAIEngine, or a LocalEngine with the path of a model")
        if self.share:
            self.engine.check()
        if self.is_all_synthetic:
            self._check_without_real_data()
        else:
            self.data.check()

    def _check_without_real_data(self) -> None:
        if not self.share:
            raise DataError("data.path: none is named, and with share=0 nothing is written: there is nothing to train")
        for name, generator in self.generators.items():
            if generator.path is None:
                raise DataError(
                    f"generators: {name} ({type(generator).__name__}) begins with real records, and data.path names "
                    "none: name some, or take a generator with a path of prompts"
                )
        for each in self.filters:
            if isinstance(each, SeedSimilarity | Decontamination):
                raise DataError(
                    f"filters: {type(each).__name__} compares with real records, and data.path names none: leave it out"
                )
        self.data.check_settings()

    def prepare_data(self) -> None:
        """Generates what is missing, and tokenizes both; where nothing is trained, only what is real."""
        trains = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if self.share and trains:
            self.augment()
            self._add_result()
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Opens the real rows, and for training the synthetic ones."""
        if self.share and stage == "fit":
            self._add_result()
        self.data.setup(stage)
        if self.data.added:
            real, synthetic = self.data.row_counts()
            share = sum(synthetic) / (sum(real) + sum(synthetic))
            rank_zero_info(f"  {share:.1%} of the training rows are synthetic (share={self.share} at most)")

    def _add_result(self) -> None:
        if not self.is_all_synthetic:
            self.data.added = [RecordSource(str(self.result))]
            self.data.added_share = self.share

    def augment(self) -> Path:
        """Generate, filter, and write the result and its report; returns the result's path.

        Raises:
            DataError: nothing comes out of it; the message shows where it was lost.
        """
        self.check()
        assert self.engine is not None
        if not self.is_all_synthetic:
            self.data.added = ()
            self.data.prepare_data()
        generation = Generation(self.generators, self._seeds(), self.engine, self.data.encoder, self.folder)
        try:
            generation.run(*process_number())
            with build_lock(self.folder / "filters", "the filtered records"):
                key = self._key(generation)
                if key_of_result(self.result) != key:
                    self._filter(generation, key)
        finally:
            self.engine.release()
        return self.result

    def _seeds(self) -> dict[str, Seeds]:
        folder, cache = self.folder / "seeds", cache_root(self.data.cache_dir)
        own = {
            name: prompt_seeds(generator.path, folder, cache)
            for name, generator in self.generators.items()
            if generator.path is not None
        }
        return own if self.is_all_synthetic else dict.fromkeys(self.generators, training_seeds(self.data, folder)) | own

    def _key(self, generation: Generation) -> str:
        held_out = [] if self.is_all_synthetic else self.data.records_key("val")
        return key_of(VERSION, generation.key(), settings_of(self.filters), held_out)

    def _filter(self, generation: Generation, key: str) -> None:
        statistics = generation.statistics()
        for name, counts in statistics.items():
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items())
            failed = f", {counts['num_failed']:,} given up" if counts["num_failed"] else ""
            rank_zero_info(
                f"{name}: {counts['num_candidates']:,} records of {counts['num_tasks']:,}, {counts['num_tokens']:,}"
                f" tokens{failed}{f' ({reasons})' if reasons else ''}"
            )
        if not any(counts["num_candidates"] for counts in statistics.values()):
            raise DataError(f"generators: nothing came of any record: {_lost(statistics)}")
        with CallLog(self.folder / "calls" / "filters.log") as log:
            assert self.engine is not None
            engine = CachedEngine(self.engine, log)
            context = Context(lambda: self._said("train"), lambda: self._said("val"), engine, self.folder / "filters")
            funnel = run_filters(self.filters, generation.candidates, context)
        about = {"engine": self.engine.settings(), "generators": statistics, "filters": settings_of(self.filters)}
        report = write_report(self.folder, funnel, about)
        rank_zero_info(f"{funnel.table()}\nReport: {report}")
        self._check_funnel(funnel)
        write_result(self.result, funnel.kept(), self._makes_pairs, key)

    def _check_funnel(self, funnel: Funnel) -> None:
        if not funnel.num_kept:
            raise DataError(f"filters: no record is left, see {self.folder / 'report.html'}\n{funnel.table()}")
        if funnel.num_kept < SMALL_SHARE * funnel.num_in:
            rank_zero_warn(f"Only {funnel.num_kept:,} of {funnel.num_in:,} generated records are left.")

    def _said(self, part: Any) -> Iterator[list[Message]]:
        return iter(()) if self.is_all_synthetic else (record.messages for record in self.data.records(part))

    def preview(self, num_records: int) -> Iterator[str]:
        """As the real data, over both."""
        return self.data.preview(num_records)

    def train_dataloader(self) -> Any:
        """Real and synthetic rows, shuffled."""
        return self.data.train_dataloader()

    def val_dataloader(self) -> Any:
        """The real data's; no synthetic record validates."""
        return self.data.val_dataloader()

    def test_dataloader(self) -> Any:
        """The real data's; no synthetic record is tested on."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """Of the real data."""
        return self.data.predict_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The position in both."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.data.load_state_dict(state_dict)


def _lost(statistics: dict[str, dict[str, Any]]) -> str:
    lost = {
        name: counts["dropped"] | ({"given up": counts["num_failed"]} if counts["num_failed"] else {})
        for name, counts in statistics.items()
    }
    return "; ".join(
        f"{name}: {', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}"
        for name, reasons in lost.items()
    )
