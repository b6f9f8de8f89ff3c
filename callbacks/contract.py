"""What callbacks ask of parts that are not theirs: the LightningModule, the DataModule and the loggers.

Each protocol is one ability. A callback that cannot work without one asks by `required`, before anything is trained;
what it only makes use of, where it is there, goes by `offered`.
"""

from collections.abc import Mapping, Sequence
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


class NamesMonitor(Protocol):
    """Made use of by `RunSummary`, which else takes the lowest `val/loss` for the best."""

    monitor: tuple[str, str]
    """A metric of validation, and whether `min` or `max` is its better end."""


class EvaluatesTasks(Protocol):
    """Needed by `Evaluation`."""

    def load_tasks(self, asked: Mapping[str, Any]) -> Any:
        """The tasks with their data, read before training; `asked` holds the fields of `Asked`."""

    def evaluate_tasks(self, tasks: Any, asked: Mapping[str, Any], folder: Path) -> dict[str, float]:
        """Scores by TASK/METRIC of the weights as they are; what is known of single items goes to the folder.

        Called on every rank, in the middle of training.
        """


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
