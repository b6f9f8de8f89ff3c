"""What a LightningModule may ask of a DataModule, and what is in the batches of each kind.

Neither package imports the other: a module asks by these names, and does without what a DataModule has not. Only the
command line sees both, and compares the module's `batch_kind` with the DataModule's before any long work.

B batch, T tokens of a row, M documents, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from torch import Tensor

BatchKind = Literal[
    "texts", "masked texts", "texts with spans taken out", "conversations", "preference pairs", "prompts"
]
"""What a batch holds. Those of texts, masked ones too, and of conversations are `PackedBatch`es."""


Part = Literal["train", "val"]


class PackedBatch(TypedDict):
    """Packed rows: documents one after the other, without padding between them."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, not shifted; -100 where there is no loss, as on padding and on a document's first token; of masked
    texts the tokens that are hidden, where they are.
    """
    position_ids: Tensor
    """(B, T) int64, from 0 on in each document; what is padded at a row's end is one too."""


class SpanTextBatch(TypedDict):
    """Packed rows of documents of which spans were taken out, and those spans, for an encoder-decoder."""

    input_ids: Tensor
    """(B, S) int64, what the encoder reads, with a sentinel in the place of each span."""
    input_documents: Tensor
    """(B, S) int64, which document of its row a token is of; -1 for padding."""
    labels: Tensor
    """(B, T) int64, what the decoder writes, not shifted: each sentinel with its span; -100 for padding."""
    label_documents: Tensor
    """(B, T) int64, as `input_documents`."""


class SpanBatch(TypedDict):
    """Packed rows in which a document may begin with the prompt of an earlier one."""

    input_ids: Tensor
    """(B, T) int64."""
    position_ids: Tensor
    """(B, T) int64, counted from the beginning of a document's prompt."""
    spans: Tensor
    """(M, 5) int64: row, start and end of each document; start and end of the prompt in front of an earlier one that it
    begins with too (0, 0 for none).
    """


class AnswerBatch(TypedDict):
    """The tokens of K answers, one answer after the other, M in all."""

    target_positions: Tensor
    """(M,) int64, where each is predicted, in the flattened rows (B * T): the token before it."""
    targets: Tensor
    """(M,) int64, token ids."""
    num_targets: Tensor
    """(K,) int64, tokens of each answer."""


class PairBatch(SpanBatch, AnswerBatch):
    """N preference pairs; their 2N answers are those of the first pair, chosen and rejected, of the second, ...

    A single answer is a pair of which one side is missing: that one's answer has no targets and its length is 0, and
    both ends are the answer's.
    """

    chosen_ends: Tensor
    """(N,) int64, the places of the responses' last tokens in the flattened rows (B * T)."""
    rejected_ends: Tensor
    """(N,) int64."""
    chosen_lengths: Tensor
    """(N,) int64, tokens behind the shared ones."""
    rejected_lengths: Tensor
    """(N,) int64."""
    ties: Tensor
    """(N,) bool."""
    margins: Tensor
    """(N,) float32."""
    chosen_scores: Tensor
    """(N,) float32, NaN for none."""
    rejected_scores: Tensor
    """(N,) float32, NaN for none."""
    numbers: Tensor
    """(N,) int64, which ones of all pairs these are, in the order of the rows."""


class MismatchBatch(SpanBatch, AnswerBatch):
    """K prompts, each with an answer to another one."""

    numbers: Tensor
    """(K,) int64, whose prompts these are: which ones of all pairs, in the order of the rows."""


class ConversationBatch(SpanBatch):
    """M conversations to score, for `predict`."""

    ends: Tensor
    """(M,) int64, the places of their last tokens in the flattened rows (B * T)."""
    records: list[dict[str, Any]]
    """The records that they were read from."""
    indices: list[int]
    """Which ones of the file these are."""


class UnfitBatch(TypedDict):
    """What cannot be scored."""

    unfit: list[tuple[int, dict[str, Any], str]]
    """Which one of the file, its record, and why."""


class ContinuationBatch(TypedDict):
    """Prompts to go on from, padded on the left."""

    prompt_ids: Tensor
    """(B, T) int64, T the longest one."""
    attention_mask: Tensor
    """(B, T) int64, 0 on padding."""


class PromptBatch(ContinuationBatch):
    """Prompts, with what a reward has to know to judge their completions."""

    prompts: list[str | list[dict[str, Any]]]
    """Texts, or the messages of conversations."""
    numbers: list[int]
    """Of the prompts among all."""
    columns: dict[str, list[Any]]
    """The records' other columns, None where a record has it not."""


@runtime_checkable
class TrainingTexts(Protocol):
    """All texts that are trained on."""

    def contaminated(self, items: Sequence[Sequence[str]], rank: int = 0, num_ranks: int = 1) -> list[bool | None]:
        """For each item, which is given by its texts, whether it stands in this rank's share of them; None where that
        cannot be told.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """What every DataModule of this project has."""

    batch_kind: BatchKind
    tokenizer: Any
    """A `PreTrainedTokenizerFast`, once the data is built."""
    new_tokens: Any
    """Control tokens that the network gets; set before anything is read."""
    batch_size: int

    def check(self) -> None:
        """Find a user's mistakes in settings and first records; raises `DataError`."""
        ...

    def preview(self, num_records: int) -> Iterable[str]:
        """Lines to print: the first records as the model will see them."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is trained on, for experiment trackers; at least `path`."""
        ...

    def training_texts(self) -> TrainingTexts:
        """All that is trained on, to look for the items of evaluations in it."""
        ...


@runtime_checkable
class PackedData(Data, Protocol):
    """One that packs rows: `TextDataModule`, `InstructionDataModule`, `PreferenceDataModule`."""

    seq_len: int
    numbers_rows: bool
    """Whether batches bring `row_numbers` (B,) int64, -1 for a blank row; set before any loader is asked for."""

    def in_order(self, part: Part) -> Iterable[Any]:
        """All rows of a part, each once, in their order, in equally many batches on each rank."""
        ...

    def num_rows(self, part: Part) -> int:
        """How many there are, without the blank ones that complete batches."""
        ...

    def rows_name(self, part: Part) -> str:
        """Names the rows by all that is in them: records, template, tokenizer, and how they are cut."""
        ...


@runtime_checkable
class PairData(PackedData, Protocol):
    """One of preferences: `PreferenceDataModule`."""

    share_prompts: bool
    """Whether a prompt stands once for both responses, which needs document-masked attention."""

    def require_pairs(self, who: str) -> None:
        """Refuse single answers, here and whenever more is read; raises `DataError`. `who` needs pairs."""
        ...

    def num_labelled(self, part: Part) -> tuple[int, int]:
        """How many answers of a part are desirable, and how many are not: of a pair, one each."""
        ...

    def reference_dataloader(self) -> Iterable[PairBatch]:
        """The pairs that rewards are normalized on."""
        ...

    def predict_dataloader(self) -> Scored:
        """Conversations to score."""
        ...

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first held-out prompts, for samples in passing."""
        ...

    def in_order(self, part: Part) -> Iterable[PairBatch]:
        """All pairs of a part, each once."""
        ...

    def mismatches(self, part: Part, count: int | None = None) -> Iterable[MismatchBatch]:
        """Prompts with answers to others: in training of `count` batches, from the one that was handed out last."""
        ...

    def num_pairs(self, part: Part) -> int:
        """In all rows of a part."""
        ...


@runtime_checkable
class Scored(Protocol):
    """Conversations to score."""

    @property
    def key(self) -> str:
        """Names what is scored and how it is written down."""
        ...

    def __iter__(self) -> Iterator[ConversationBatch | UnfitBatch]: ...


@runtime_checkable
class PromptData(Data, Protocol):
    """One of prompts: `PromptDataModule`."""

    max_prompt_tokens: int
    record_check: Callable[[dict[str, Any]], str | None] | None
    """From a record's columns to why rewards could not judge a completion of it, or None; the module that trains sets
    it. Its `key` names it.
    """

    def example_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the first held-out prompts, for samples in passing."""
        ...
