"""What callbacks ask of parts that are not theirs: the LightningModule, the DataModule and the loggers.

Each protocol is one ability. A callback that cannot work without one asks by `required`, before anything is trained;
what it only makes use of, where it is there, goes by `offered`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from lightning.pytorch import Callback, LightningModule
from typing_extensions import get_protocol_members

from callbacks.errors import CallbackError


class HoldsNetwork(Protocol):
    """Needed by `Pruning`, `Quantization`, `Samples` and `Throughput`, once `configure_model` has built it."""

    model: Any
    """A `transformers.PreTrainedModel`, or a `peft.PeftModel` around one."""


class SavesModel(Protocol):
    """Needed by `ModelFolder` and `Quantization`."""

    def save_model(self, folder: Path) -> None:
        """Write what transformers loads, or peft for an adapter, into an empty folder; called on every rank."""


class MergesAdapter(Protocol):
    """Needed by `Quantization` where the network has an adapter, for what `save_model` writes may be that alone."""

    def merge_adapter(self, adapter: Path, folder: Path) -> None:
        """Write the whole network, with the adapter that lies in one folder merged into it, to another one."""


class HasTokenizer(Protocol):
    """Needed by `Samples`."""

    tokenizer: Any
    """A `transformers.PreTrainedTokenizerBase`, by the beginning of fit."""


class CountsTokens(Protocol):
    """Needed by `Evaluation`, by `Pruning` where its schedule counts tokens, by `Energy` for the joules of a token."""

    tokens_seen: int
    """Trained tokens of all ranks so far."""


class MeasuresSources(Protocol):
    """Needed by `LossWeightedMixture`: what logs `val/loss/SOURCE` of each source that validates."""

    source_losses: Any
    """Their sums, within a validation."""


class MixesSources(Protocol):
    """Of a DataModule; needed by `LossWeightedMixture`."""

    def require_mixture(self, who: str) -> None:
        """Make its sources ones whose shares can be moved while they are read; raises an error that names `who` where
        they cannot be. Called before any loader is asked for.
        """

    def shares(self) -> dict[str, float]:
        """Of the next batch, by the names of the sources; they add up to 1."""
        ...

    def reweigh(self, shares: Mapping[str, float]) -> None:
        """Other shares, from the next batch on; every rank gives the same ones, and checkpoints hold them."""


class NamesMonitor(Protocol):
    """Made use of by `RunSummary`, which else takes the lowest `val/loss` for the best."""

    monitor: tuple[str, str]
    """A metric of validation, and whether `min` or `max` is its better end."""


class EvaluatesTasks(Protocol):
    """Needed by `Evaluation` and `SafetyGate`."""

    def load_tasks(self, asked: Mapping[str, Any]) -> Any:
        """The tasks with their data, read before training; `asked` holds the fields of `Asked`."""

    def evaluate_tasks(
        self, tasks: Any, asked: Mapping[str, Any], folder: Path, judge: Any = None, keep_answers: bool = False
    ) -> dict[str, float]:
        """Scores by TASK/METRIC of the weights as they are; what is known of single items goes to the folder.

        Called on every rank, in the middle of training.

        Args:
            tasks, asked: see `load_tasks`.
            folder: of this evaluation; `results.json` is written last.
            judge: a `Judge` in the place of the tasks' own rules.
            keep_answers: whether answers are on disk as they come, and the same weights are asked nothing twice.
        """


class TabulatesEvaluations(Protocol):
    """Made use of by `Evaluation` where W&B takes tables."""

    def evaluation_table(self, folder: Path) -> list[dict[str, Any]]:
        """A row of JSON for each score that `evaluate_tasks` wrote to a folder, all with the same columns."""


class ComparesEvaluations(Protocol):
    """Needed by `SafetyGate`."""

    def compare_evaluations(self, before: Path, after: Path, metrics: Collection[tuple[str, str]]) -> dict[str, Any]:
        """Paired tests of two folders that `evaluate_tasks` wrote.

        Args:
            before, after: the folders.
            metrics: (task, metric) of what is tested, in their order. The tests are corrected for their number.

        Returns:
            `changes`, a dict for each metric that both have: `task`, `metric`, `before`, `after`, `difference` with its
            95 % interval `low` to `high`, `p` and `corrected_p` (Holm), `smallest` (the smallest true difference that
            four of five such comparisons would show), `test`, `num_items`, `num_left_out`, `higher_is_better`; None
            where a number is not known. By task `judged_by` and `judge_prompts`; by TASK/METRIC how many verdicts were
            `unreadable`; and the settings that were `asked_differently`.
        """


class KeepsShards(Protocol):
    """Of a strategy; needed by `EMA` and `SWA` where ranks hold parts of the weights."""

    keeps_shards: bool
    """True: what a checkpoint holds by names of parameters, sharded as these are, is saved and loaded in parts."""


# A type variable and `Any` where classes of the two packages that have engines differ: to jsonargparse these fit all.
Text = TypeVar("Text", covariant=True)


class Judge(Protocol[Text]):
    """Made use of by `SafetyGate`, which else judges by rules: `LocalEngine`, `OpenAIEngine` or a class of your own."""

    @property
    def model(self) -> str:
        """Names the model: other weights, another name."""
        ...

    def write(self, requests: Any) -> Iterator[tuple[int, Text]]:
        """Texts as they are done, each with its request's place."""
        ...

    def settings(self) -> dict[str, Any]:
        """What is written into results; no secrets."""
        ...

    def release(self) -> Any:
        """Give back the memory of the model."""
        ...

    def check(self) -> Any:
        """Raise a user's error for settings that cannot work, before anything long begins."""
        ...


class KeepsSamples(Protocol):
    """Made use of by `RolloutTable`, which else writes nothing."""

    samples: list[dict[str, Any]]
    """Rows of JSON, of the step that is over."""


class ReliabilityBins(Protocol):
    """Of a model's choices, sorted by the probability that it gives them; a list has a number for each bin."""

    @property
    def confidence(self) -> Sequence[float]:
        """For each bin the mean probability that the network gave to its choice."""

    @property
    def accuracy(self) -> Sequence[float]:
        """Share of right choices."""

    @property
    def num_pairs(self) -> Sequence[int]:
        """For each bin the number of choices in it."""

    @property
    def ece(self) -> float:
        """Expected calibration error."""

    def _asdict(self) -> dict[str, Any]: ...  # it is a NamedTuple


class MeasuresReliability(Protocol):
    """Made use of by `Reliability`, which else draws nothing."""

    def reliability(self) -> ReliabilityBins | None:
        """Of the last validation; None where it had no pairs."""


class ResumesPredictions(Protocol):
    """Made use of by `Predictions`, which else begins anew each time."""

    finished: set[int]
    """Indices of what need not be predicted again."""

    def prediction_key(self) -> str:
        """Names what predictions are made of; with another one nothing is taken over."""


class HasExamplePrompts(Protocol):
    """Of a DataModule; made use of by `Samples`, which else takes openings of English texts."""

    def example_prompts(self, count: int) -> list[str] | list[list[int]]:
        """So many prompts at most, as texts or token ids."""


class ReadsTexts(Protocol):
    """Of a DataModule; needed by `EWC`."""

    def texts(self, path: str) -> Iterator[str]:
        """The texts of any path, one after the other, whatever the run itself is trained on."""


class Waits(Protocol):
    """Of a DataModule whose data come while the run trains; made use of by `RunCheckpoint` and `GracefulStop`."""

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for data now, all that came before being trained on."""
        ...

    def rests(self) -> bool:
        """Whether it will wait behind the batch that was handed out last; every rank asks at the same batch."""
        ...


class SendsAlerts(Protocol):
    """Of a logger; made use of by `StopWhen` where a run diverges."""

    def alert(self, title: str, text: str) -> None:
        """Notify whoever watches the run."""


Contract = TypeVar("Contract")


def required(pl_module: LightningModule, contract: type[Contract], callback: Callback) -> Contract:
    """The module, which keeps the contract.

    Raises:
        CallbackError: It does not.
    """
    for name in sorted(_lacking(pl_module, contract)):
        who, module = type(callback).__name__, type(pl_module).__name__
        raise CallbackError(
            f"{who} needs a module with `{name}`, and {module} has none: give it one, as "
            f"callbacks.contract.{contract.__name__} describes it, or leave {who} out of trainer.callbacks."
        )
    return cast(Contract, pl_module)


def offered(part: object, contract: type[Contract]) -> Contract | None:
    """A module, DataModule or logger where it keeps the contract, else None."""
    return None if _lacking(part, contract) else cast(Contract, part)


def _lacking(part: object, contract: type) -> list[str]:
    # Not by `isinstance`: from Python 3.12 on that does not see what `nn.Module` holds (`self.model`).
    return [name for name in get_protocol_members(contract) if not hasattr(part, name)]
