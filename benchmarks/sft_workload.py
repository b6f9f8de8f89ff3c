"""What every contender of the fine-tuning benchmark learns: the same weights, tokenizer, chat template and records."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.workload import SHAPES, Shape

EMBEDDED = "python_pairs"
"""The data that is everywhere: questions about the running Python, answered by its documentation."""

# ChatML, with its line ends between turns and not after the last: TRL would learn that one too, and ours does not.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
END_OF_TURN = "<|im_end|>"

# One row of ours a step, so that it has the same tokens as a usual batch of records.
SFT_SHAPES = SHAPES | {
    ("9m", "cpu"): replace(SHAPES["9m", "cpu"], rows=1, seq_len=2048, warmup=4, steps=16),
    ("135m", "cpu"): replace(SHAPES["135m", "cpu"], rows=1, seq_len=1024, warmup=2, steps=8),
}
SFT_QUICK = replace(SFT_SHAPES["9m", "cpu"], warmup=2, steps=6)

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}

Message = dict[str, str]
Pair = dict[str, list[Message]]


@dataclass
class SFTJob:
    """One pass over the records, as the child process reads it from a JSON file.

    Args:
        folder: transformers model folder with the initial weights, float32, and a tokenizer with its chat template.
        records: .jsonl file of {prompt, completion}, each a list of messages.
        scratch: folder for what the contender writes.
        result: where the clock writes its figures.
        rows: packed rows a step.
        seq_len: tokens of a packed row; no record is longer.
        batch_size: records a step where they are not packed, as many as `rows` rows hold on average.
        warmup: steps that are not timed.
        method: `full`, `lora`, or `lora-int8`.
        precision: `32-true` or `bf16-mixed`, in Lightning's words.
        device: `cpu` or `cuda`.
        compile: whether ours compiles.
        checkpointing: whether ours recomputes activations.
        setting: TRL's, see `trl_sft.SETTINGS`.
    """

    folder: str
    records: str
    scratch: str
    result: str
    rows: int
    seq_len: int
    batch_size: int
    warmup: int
    method: str
    precision: str
    device: str
    compile: bool = False
    checkpointing: bool = False
    setting: str = ""
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"lr": 2e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    )
    max_norm: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics of one run, all of the timed steps but `trained_tokens`, which are those of the whole pass."""
        return {
            "trained_tokens_per_s": measured["trained"] / measured["wall_s"],
            "trained_tokens_per_cpu_s": measured["trained"] / measured["cpu_s"],
            "tokens_per_s": measured["tokens"] / measured["wall_s"],
            "records_per_s": measured["records"] / measured["wall_s"],
            "peak_memory_mb": measured["peak_memory_mb"],
            "loss": measured["loss"],
            "trained_tokens": measured["trained_in_all"],
        }


@dataclass
class PreparationJob:
    """Turning a file of records into rows that are ready to be trained on.

    Args:
        folder, records, scratch, result, seq_len, device, setting: as for `SFTJob`.
        num_records: records of the file.
        num_processes: processes that may work on it, where a contender lets one choose.
    """

    folder: str
    records: str
    scratch: str
    result: str
    seq_len: int
    num_records: int
    num_processes: int
    device: str = "cpu"
    setting: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics of one run."""
        return {
            "prepared_records_per_s": self.num_records / measured["wall_s"],
            "prepared_records_per_cpu_s": self.num_records / measured["cpu_s"],
            "peak_memory_mb": measured["peak_memory_mb"],
        }


@dataclass(frozen=True)
class Prepared:
    """What `prepare` left.

    Args:
        folder: the model folder.
        pairs: all records that fit a row, shuffled.
        lengths: tokens of each.
        num_too_long: records that were left out.
    """

    folder: Path
    pairs: list[Pair]
    lengths: list[int]
    num_too_long: int


def prepare(folder: Path, data: str, shape: Shape, weights: Path | None) -> Prepared:
    """Read the records, and write random weights (seed 0) as a transformers folder with a tokenizer of these records.

    Args:
        folder: an empty folder.
        data: a file for `read_pairs`, or `EMBEDDED`.
        shape: the network and its step.
        weights: a model folder, its tokenizer with chat template included, to take instead of random weights.

    Raises:
        ValueError: the data cannot be read, or no record fits a row.
    """
    from transformers import AutoTokenizer

    pairs = read_pairs(_embedded(folder) if data == EMBEDDED else Path(data))
    # Files are often sorted, and short records beside short ones would need no padding.
    random.Random(0).shuffle(pairs)
    if weights is None:
        weights = folder / "model"
        _write_model(weights, shape, pairs)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    conversations = [pair["prompt"] + pair["completion"] for pair in pairs]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    fits = [length <= shape.seq_len for length in lengths]
    if not any(fits):
        raise ValueError(f"--data {data}: no record has at most {shape.seq_len} tokens")
    return Prepared(
        weights, list(itertools.compress(pairs, fits)), list(itertools.compress(lengths, fits)), fits.count(False)
    )


def _embedded(folder: Path) -> Path:
    from datamodules.corpora import corpus_file

    return corpus_file(EMBEDDED, folder)


def _write_model(folder: Path, shape: Shape, pairs: list[Pair]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from datamodules.encoding.tokenizer import train

    texts = (message["content"] for pair in pairs for message in pair["prompt"] + pair["completion"])
    # A set this small may fill less than a large vocabulary; the network keeps its shape.
    tokenizer = train(texts, shape.config["vocab_size"])
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, END_OF_TURN
    tokenizer.save_pretrained(folder)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape.config, **special)).save_pretrained(folder)


def read_pairs(path: Path) -> list[Pair]:
    """The records of a .jsonl or .json file, each as one question and its answer.

    Raises:
        ValueError: it is no such file, or a record is neither instruction and output, question and answer, nor prompt
            and completion.
    """
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()] if path.suffix == ".jsonl" else json.load(file)
    if not isinstance(records, list):
        raise ValueError(f"{path}: a .json file has to hold a list of records")
    return [pair_of(record) for record in records]


def pair_of(record: dict[str, str]) -> Pair:
    """One record as {prompt, completion}, each a list of one message.

    Raises:
        ValueError: it is of none of the three shapes.
    """
    for question, answer in (("instruction", "output"), ("question", "answer"), ("prompt", "completion")):
        if question in record and answer in record:
            asked = "\n".join(filter(None, [record[question], record.get("input")]))
            # Blank space at its ends could merge with the template's into one token, and contenders differ in that.
            return {
                "prompt": [{"role": "user", "content": asked.strip()}],
                "completion": [{"role": "assistant", "content": record[answer].strip()}],
            }
    raise ValueError(
        f"a record has the fields {', '.join(record)}; the benchmark reads instruction and output, question and "
        "answer, or prompt and completion"
    )


def enough(lengths: Sequence[int], num_tokens: int) -> Iterator[int]:
    """Indices of records, in order and from the start again where they end, until they have `num_tokens` together."""
    total = 0
    for index in itertools.cycle(range(len(lengths))):
        if total >= num_tokens:
            return
        total += lengths[index]
        yield index


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """As JSON lines, which all contenders read."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
