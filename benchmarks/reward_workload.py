"""What every contender of the reward benchmark learns: the same weights with the same head, tokenizer and pairs."""

import gzip
import itertools
import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.sft_workload import CHAT_TEMPLATE, END_OF_TURN
from benchmarks.workload import SHAPES, Shape

# One row of ours a step, so that it has the same pairs as a usual batch.
REWARD_SHAPES = {
    ("tiny", "cpu"): replace(SHAPES["tiny", "cpu"], seq_len=512),
    ("9m", "cpu"): replace(SHAPES["9m", "cpu"], rows=1, seq_len=2048, warmup=4, steps=30),
    ("135m", "cpu"): replace(SHAPES["135m", "cpu"], rows=1, seq_len=1024, warmup=2, steps=8),
    ("9m", "cuda"): replace(SHAPES["9m", "cuda"], rows=16, seq_len=2048),
    ("135m", "cuda"): replace(SHAPES["135m", "cuda"], rows=8, seq_len=2048),
}
REWARD_QUICK = replace(REWARD_SHAPES["9m", "cpu"], warmup=2, steps=6)

Message = dict[str, str]
Preference = dict[str, list[Message]]
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass
class RewardJob:
    """One pass over the pairs, as the child process reads it from a JSON file.

    Args:
        folder: transformers folder of a classifier with one label, float32, and a tokenizer with its chat template,
            whose padding ends no text.
        records: .jsonl file of {prompt, chosen, rejected}, each a list of messages.
        scratch: folder for what the contender writes.
        result: where the clock writes its figures.
        rows: packed rows a step.
        seq_len: tokens of a packed row; no pair is longer.
        batch_size: pairs a step where they are not packed, as many as `rows` rows hold on average.
        warmup: steps that are not timed.
        precision: `32-true` or `bf16-mixed`, in Lightning's words.
        device: `cpu` or `cuda`.
        compile: whether ours compiles.
        share_prompts: whether ours computes a prompt once for both responses.
        setting: TRL's, see `trl_reward.SETTINGS`.
    """

    folder: str
    records: str
    scratch: str
    result: str
    rows: int
    seq_len: int
    batch_size: int
    warmup: int
    precision: str
    device: str
    compile: bool = False
    share_prompts: bool = True
    setting: str = ""
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    )
    max_norm: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics of one run, all of the timed steps but `pairs`, which are those of the whole pass."""
        return {
            "pairs_per_s": measured["pairs"] / measured["wall_s"],
            "pairs_per_cpu_s": measured["pairs"] / measured["cpu_s"],
            "peak_memory_mb": measured["peak_memory_mb"],
            "loss": measured["loss"],
            "pairs": measured["pairs_in_all"],
        }


@dataclass(frozen=True)
class PreparedPairs:
    """What `prepare` left.

    Args:
        folder: the model folder.
        pairs: all that fit a row, shuffled.
        lengths: tokens of each, what both responses begin with counted once.
        written_out: tokens of each, both conversations written out.
        num_left_out: pairs with an empty response, or longer than a row.
    """

    folder: Path
    pairs: list[Preference]
    lengths: list[int]
    written_out: list[int]
    num_left_out: int


def prepare(folder: Path, data: Path, shape: Shape, head: str = "SequenceClassification") -> PreparedPairs:
    """Read the pairs, and write random weights (seed 0) as a transformers folder with a tokenizer of these pairs.

    Args:
        folder: to write into.
        data: hh-rlhf's records.
        shape: of the network.
        head: `SequenceClassification`, of one label, or `CausalLM`.
    """
    pairs = [pair for pair in map(pair_of, _read(data)) if _has_responses(pair)]
    random.Random(0).shuffle(pairs)
    tokenizer = _write_model(folder / "model", shape, pairs, head)
    lengths, written_out = [], []
    for pair in pairs:
        talks = [pair["prompt"] + pair[name] for name in ("chosen", "rejected")]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        chosen, rejected = tokenizer(texts, add_special_tokens=False)["input_ids"]
        shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
        lengths.append(len(chosen) + len(rejected) - shared)
        written_out.append(len(chosen) + len(rejected))
    fits = [length <= shape.seq_len for length in written_out]
    kept = [list(itertools.compress(items, fits)) for items in (pairs, lengths, written_out)]
    return PreparedPairs(folder / "model", *kept, num_left_out=len(_read(data)) - sum(fits))  # type: ignore[arg-type]


def pair_of(record: dict[str, str]) -> Preference:
    """A record of hh-rlhf as {prompt, chosen, rejected}: what both transcripts begin with, and the rest of each."""
    chosen, rejected = (_turns(record[name]) for name in ("chosen", "rejected"))
    common = sum(
        1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(chosen[:-1], rejected[:-1], strict=False))
    )
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _turns(transcript: str) -> list[Message]:
    parts = transcript.split("\n\n")
    turns: list[Message] = []
    for part in parts:
        speaker, colon, said = part.partition(":")
        if colon and speaker in SPEAKERS:
            turns.append({"role": SPEAKERS[speaker], "content": said.strip()})
        elif turns:
            turns[-1]["content"] += f"\n\n{part}"
    # Blank space at its ends could merge with the template's into one token, and contenders differ in that.
    return [turn | {"content": turn["content"].strip()} for turn in turns]


def _has_responses(pair: Preference) -> bool:
    ends = [pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]]
    return all(ends) and pair["chosen"] != pair["rejected"]


def _read(data: Path) -> list[dict[str, str]]:
    with (gzip.open if data.suffix == ".gz" else open)(data, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_model(folder: Path, shape: Shape, pairs: list[Preference], head: str) -> Any:
    import torch
    import transformers

    from datamodules.encoding.tokenizer import train

    texts = (message["content"] for pair in pairs for name in pair for message in pair[name])
    tokenizer = train(texts, shape.config["vocab_size"])
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, END_OF_TURN
    tokenizer.save_pretrained(folder)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    labels = {} if head == "CausalLM" else {"num_labels": 1}
    config = transformers.LlamaConfig(**shape.config, **special, **labels)
    getattr(transformers, f"LlamaFor{head}")(config).save_pretrained(folder)
    return tokenizer
