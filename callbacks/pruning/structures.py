"""Which weights go together, and how many of them are to go."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from callbacks.errors import CallbackError
from callbacks.pruning.criteria import Criterion, Scope
from callbacks.pruning.selection import lowest, lowest_in_rows, sort_keys
from callbacks.pruning.weights import Weight, reduce_sum

Kept = Mapping[str, Tensor]


class Structure(ABC):
    """From scores to masks."""

    blocks: Sequence[nn.Module] = ()
    """Blocks of the decoder that the criterion has to watch."""
    adds_scores = False
    """Whether sums or means of scores decide, and not their order alone."""

    @abstractmethod
    def attach(self, network: Any, weights: list[Weight]) -> dict[str, nn.Parameter]:
        """Check that the structure fits these weights; returns all the parameters that it may prune, by name.

        Raises:
            CallbackError: it does not fit; the message says why.
        """

    @abstractmethod
    def masks(self, weights: list[Weight], criterion: Criterion, kept: Kept, fraction: float) -> dict[str, Tensor]:
        """New masks for a share of the whole pruning, which keep nothing that is pruned already.

        Args:
            weights: as given to `attach`.
            criterion: what each of them is worth.
            kept: the masks so far, see `Masks.kept`.
            fraction: 0 to 1.
        """

    def is_local(self, criterion: Criterion) -> bool:
        """Whether what goes of a weight depends on that weight's scores alone."""
        return False

    def width(self, block_size: int) -> int:
        """How many neighbouring columns of a weight are chosen together where its columns are pruned one by one.

        Args:
            block_size: where any number will do.

        Raises:
            CallbackError: columns cannot be chosen in turn.
        """
        raise CallbackError(
            f"Pruning.structure={type(self).__name__} cannot be chosen column by column, as SparseGPT does: take "
            "Unstructured or NM, or the criterion Wanda."
        )

    def prepare(self, weights: list[Weight], criterion: Criterion) -> None:  # noqa: B027 (most have nothing to do)
        """Decide, once, what depends on the scores of all weights."""

    def choose(self, weight: Weight, costs: Tensor, columns: slice, compares: Scope) -> Tensor:
        """Which of a weight's `columns` go at the end of the pruning, by what each removal costs; bools of the same
        shape.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What was decided once for the whole run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        assert not state


class Unstructured(Structure):
    """Single weights, wherever they are. Brings no speed by itself: zeros are multiplied like other numbers.

    Args:
        sparsity: share of the weights to prune, above 0 and below 1.
        compare: which weights compete: those of a row, of a matrix, or of the whole network; by default as the
            criterion has it.
        layers: `uniform` gives each layer the same sparsity. `sensitivity` gives less to layers in which few weights
            carry much (OWL, arXiv:2310.05175): by the share of scores above five times the layer's mean, within 0.08
            of the whole's sparsity on average, as in the paper. Decided once, from the scores before pruning.

    Raises:
        CallbackError: a sparsity of 0 or 1, or settings that exclude each other.
    """

    OUTLIER, SPREAD = 5.0, 0.08

    def __init__(
        self, sparsity: float, compare: Scope | None = None, layers: Literal["uniform", "sensitivity"] = "uniform"
    ) -> None:
        if not 0 < sparsity < 1:
            raise CallbackError(f"Unstructured.sparsity={sparsity} must be above 0 and below 1.")
        if layers == "sensitivity" and compare == "network":
            raise CallbackError("Unstructured: layers=sensitivity and compare=network exclude each other: choose one.")
        if layers == "sensitivity" and sparsity + 2 * self.SPREAD >= 1:
            raise CallbackError(f"Unstructured: with layers=sensitivity, sparsity={sparsity} must be below 0.84.")
        self.sparsity, self.compare, self.layers = sparsity, compare, layers
        self.adds_scores = layers == "sensitivity"
        self.targets: dict[str, float] = {}

    def is_local(self, criterion: Criterion) -> bool:
        """Not where weights of the whole network compete, or sensitive layers are given less."""
        return (self.compare or criterion.compares) != "network" and self.layers == "uniform"

    def attach(self, network: Any, weights: list[Weight]) -> dict[str, nn.Parameter]:
        """The parameters of all weights: none of them is refused."""
        return {weight.name: weight.parameter for weight in weights}

    def masks(self, weights: list[Weight], criterion: Criterion, kept: Kept, fraction: float) -> dict[str, Tensor]:
        """The lowest scores of each row, matrix, or of all."""
        self.prepare(weights, criterion)
        scope = self.compare or criterion.compares
        if scope == "network":
            count = round(fraction * self.sparsity * sum(weight.shape.numel() for weight in weights))
            keys = [sort_keys(criterion.score(weight), kept.get(weight.name)) for weight in weights]
            pruned = lowest(keys, count, weights[0].group)
            return {weight.name: ~mask for weight, mask in zip(weights, pruned, strict=True)}
        return {
            weight.name: ~_pruned(
                weight, criterion, kept, fraction * self.targets.get(weight.name, self.sparsity), scope
            )
            for weight in weights
        }

    def width(self, block_size: int) -> int:
        """Any, but where weights of the whole network compete."""
        return super().width(block_size) if self.compare == "network" else block_size

    def prepare(self, weights: list[Weight], criterion: Criterion) -> None:
        """Decide each layer's share, where they differ."""
        if self.layers == "sensitivity" and not self.targets:
            self.targets = self._targets(weights, criterion)

    def choose(self, weight: Weight, costs: Tensor, columns: slice, compares: Scope) -> Tensor:
        """The lowest of each row, or of all these columns; in the whole weight exactly as many as there should be."""
        share = self.targets.get(weight.name, self.sparsity) * weight.shape[0]
        count = round(share * columns.stop) - round(share * columns.start)
        keys = sort_keys(costs, None)
        if (self.compare or compares) == "rows":
            return lowest_in_rows(keys, count, weight.shape[0], 0)
        return lowest([keys], count)[0]

    def _targets(self, weights: list[Weight], criterion: Criterion) -> dict[str, float]:
        """Each weight's sparsity by its layer's sensitivity; their mean is that of the whole."""
        layers: dict[str, list[Weight]] = {}
        for weight in weights:
            layers.setdefault(layer_of(weight.name), []).append(weight)
        ratios = {name: self._outlier_ratio(members, criterion) for name, members in layers.items()}
        low, high = min(ratios.values()), max(ratios.values())
        raised = {name: 2 * self.SPREAD * (r - low) / (high - low or 1) for name, r in ratios.items()}
        sizes = {name: sum(weight.shape.numel() for weight in members) for name, members in layers.items()}
        mean = sum(raised[name] * sizes[name] for name in layers) / sum(sizes.values())
        return {weight.name: self.sparsity + mean - raised[name] for name in layers for weight in layers[name]}

    def _outlier_ratio(self, weights: list[Weight], criterion: Criterion) -> float:
        scores = [criterion.score(weight) for weight in weights]
        group = weights[0].group
        size = sum(weight.shape.numel() for weight in weights)
        total = torch.stack([score.sum(dtype=torch.float64) for score in scores]).sum()
        mean = float(reduce_sum(total, group) if group is not None else total) / size
        outliers = torch.stack([(score > self.OUTLIER * mean).sum() for score in scores]).sum()
        return float(reduce_sum(outliers, group) if group is not None else outliers) / size

    def state_dict(self) -> dict[str, Any]:
        """The sparsity of each weight."""
        return {"targets": dict(self.targets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.targets = dict(state["targets"])


class NM(Structure):
    """At most n of each m neighbours in a row are kept, which GPUs with sparse tensor cores can use (2:4).

    On the way there the weights that will go are pruned by their scores, so that no group ever has more than m - n
    zeros of it.

    Args:
        n: kept of each group.
        m: weights of a group.

    Raises:
        CallbackError: n is not below m, or m does not divide a row.
    """

    def __init__(self, n: int = 2, m: int = 4) -> None:
        if not 0 < n < m:
            raise CallbackError(f"NM: n={n} must be above 0 and below m={m}.")
        self.n, self.m = n, m

    def is_local(self, criterion: Criterion) -> bool:
        """Always: a group of weights is all that compares."""
        return True

    def attach(self, network: Any, weights: list[Weight]) -> dict[str, nn.Parameter]:
        """Every row has to consist of whole groups."""
        for weight in weights:
            if weight.shape[1] % self.m:
                raise CallbackError(
                    f"NM: {self.m} does not divide the {weight.shape[1]} inputs of {weight.name}; leave it out by "
                    "Pruning.exclude, or choose another m."
                )
        return {weight.name: weight.parameter for weight in weights}

    def masks(self, weights: list[Weight], criterion: Criterion, kept: Kept, fraction: float) -> dict[str, Tensor]:
        """Of the m - n lowest of each group, the lowest of the matrix."""
        masks = {}
        for weight in weights:
            keys = sort_keys(criterion.score(weight), kept.get(weight.name))
            candidates = self._lowest_of_groups(keys)
            count = round(fraction * (1 - self.n / self.m) * weight.shape.numel())
            if fraction < 1:
                keys = torch.where(candidates, keys, torch.iinfo(torch.int32).max)
                candidates = lowest([keys], count, weight.group)[0]
            masks[weight.name] = ~candidates
        return masks

    def width(self, block_size: int) -> int:
        """A group."""
        return self.m

    def choose(self, weight: Weight, costs: Tensor, columns: slice, compares: Scope) -> Tensor:
        """The m - n lowest of each row's group."""
        return self._lowest_of_groups(sort_keys(costs, None))

    def _lowest_of_groups(self, keys: Tensor) -> Tensor:
        """Counts for each weight those of its group that come before it; faster than sorting millions of groups."""
        columns = keys.view(-1, self.m).unbind(1)
        marked = []
        for i, key in enumerate(columns):
            before = torch.zeros_like(key, dtype=torch.uint8)
            for j, other in enumerate(columns):
                if j != i:
                    before += (other <= key) if j < i else (other < key)
            marked.append(before < self.m - self.n)
        return torch.stack(marked, 1).view(keys.shape)


def _pruned(weight: Weight, criterion: Criterion, kept: Kept, sparsity: float, scope: Scope) -> Tensor:
    keys = sort_keys(criterion.score(weight), kept.get(weight.name))
    count = round(sparsity * weight.shape.numel())
    if scope == "rows":
        return lowest_in_rows(keys, count, weight.shape[0], weight.first_row)
    return lowest([keys], count, weight.group)[0]


def layer_of(name: str) -> str:
    """The block that a weight belongs to; itself, where it belongs to none."""
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else name
