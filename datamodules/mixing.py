"""The mixture of a DataModule over packed rows: which share each source has, by settings or by what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.base import ResumableDataModule
from datamodules.errors import DataError
from datamodules.serving.orders.mixture import Mixture, MixtureOrder
from datamodules.serving.orders.order import ShuffledOrder
from datamodules.serving.orders.schedule import (
    check_reweighable,
    is_scheduled,
    names_of,
    plan_in_words,
    scheduled,
    tempered,
)
from datamodules.sources.discover import Source


class MixingDataModule(ResumableDataModule):
    """Mixes sources, each with its share of the rows.

    Whoever moves shares while they are read (see `require_mixture`) has them hold from the batch behind the one that
    was handed out last, on any number of workers, as what these read ahead is let go. All shares since the beginning
    are in the checkpoint, each with the sample that it holds from.

    Args:
        args, kwargs: see `ResumableDataModule`.
    """

    seq_len: int

    added: Sequence[Source] = ()
    """What else is trained on: nothing of it validates, and what asks a question of validation is left out."""
    added_share = 0.5
    """The share of the rows that come from there, at most; the first ones are taken."""
    mixes = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mixture: Mixture | None = None
        self._is_reweighed = False
        self._changes: list[tuple[int, list[float]]] = []

    def setup(self, stage: str) -> None:
        """Begins with the weights of the settings."""
        super().setup(stage)
        self._mixture, self._changes = None, []

    def validated_sources(self) -> Sequence[str]:
        """The names of the sources that validate, as far as it is known by now."""
        raise NotImplementedError

    def require_mixture(self, who: str) -> None:
        """Make the sources ones whose shares `reweigh` may move; before any loader is asked for.

        Args:
            who: moves them, by their validation losses.

        Raises:
            DataError: there are not several sources with weights, these follow a schedule, or one does not validate.
        """
        check_reweighable(self.sources, who)
        validated = self.validated_sources()
        for name in names_of(self.train_sources):
            if name not in validated:
                raise DataError(
                    f"sources: {name!r} has no rows to validate on, and {who} goes by the validation loss of each "
                    f"source; raise val_share, name a val_path for each (those of now: {list(validated)}), or leave "
                    f"{who} out"
                )
        self._is_reweighed = True

    def shares(self) -> dict[str, float]:
        """Of the next batch, by the names of the sources; they add up to 1."""
        names = names_of(self.train_sources)
        if self._changes:
            return dict(zip(names, self._changes[-1][1], strict=True))
        weights = self.weights or [1.0] * len(names)
        return {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}

    def reweigh(self, shares: Mapping[str, float]) -> None:
        """Other shares, by the names of all sources, from the next batch on; every rank gives the same ones."""
        assert self._train_loader is not None
        self._changes.append((self.position, [shares[name] for name in names_of(self.train_sources)]))
        self._apply(*self._changes[-1])
        self._train_loader.renew()

    def _apply(self, sample: int, shares: Sequence[float]) -> None:
        assert self._mixture is not None and self.weights is not None
        total = sum(self.weights)  # what is added keeps its share beside it
        self._mixture.reweigh(sample, [share * total for share in shares])

    def make_order(self, num_rows: list[int], period: int) -> ShuffledOrder | MixtureOrder:
        """Which row comes when, as the settings and what was told since say it.

        Args:
            num_rows: of each source, and of what is added to them.
            period: see `MixtureOrder`.
        """
        counts, weights = self.mixture(num_rows)
        if not (is_scheduled(self.train_sources) or self._is_reweighed):
            return ShuffledOrder(counts, weights, self.seed, period)
        order = scheduled(self.train_sources, counts, self.seq_len, self.seed, period)
        self.begin_mixture(order)
        if self.trainer is not None and (steps := self.trainer.max_steps) > 0:
            planned = steps * self.trainer.accumulate_grad_batches * self.global_batch_size
            lines = plan_in_words(order, names_of(self.train_sources), planned)
            if self._is_reweighed:
                lines = [f"{name}: {share:.1%} of the next rows" for name, share in self.shares().items()]
            for line in lines:
                rank_zero_info(f"  {line}")
        return order

    def begin_mixture(self, mixture: Mixture) -> None:
        """Take a mixture for the one that shares are moved of, with all that they were moved to before."""
        self._mixture = mixture
        for change in self._changes:
            self._apply(*change)

    def mixture(self, num_rows: list[int]) -> tuple[list[int], list[float] | None]:
        """How many rows of each source an epoch draws from, and the sources' weights."""
        weights, num_real = self.weights, len(num_rows) - len(self.added)
        real = sum(num_rows[:num_real])
        room = int(real * self.added_share / (1 - self.added_share))
        counts = num_rows[:num_real]
        for rows in num_rows[num_real:]:
            counts.append(min(rows, room))
            room -= counts[-1]
        if weights is None and self.temperature is not None:
            weights = tempered(counts[:num_real], self.temperature)
        if weights is not None:
            weights += [sum(weights) * count / real for count in counts[num_real:]]
        return counts, weights

    def mixture_key(self) -> list[Any]:
        """What names the mixture, beside the weights; nothing where there is no more to it."""
        mixture: list[Any] = [self.added_share] if self.added else []
        if self.temperature is not None:
            mixture.append(["temperature", self.temperature])
        if is_scheduled(self.train_sources):
            mixture.append([[source.weight_schedule, source.max_epochs] for source in self.train_sources])
        if self._is_reweighed:
            mixture.append("reweighed")
        return mixture

    def state_dict(self) -> dict[str, Any]:
        """With the shares since the beginning."""
        return super().state_dict() | ({"shares": list(self._changes)} if self._is_reweighed else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the checkpoint's position, with its shares."""
        super().load_state_dict(state)
        self._changes = [(sample, list(shares)) for sample, shares in state.get("shares", [])]
