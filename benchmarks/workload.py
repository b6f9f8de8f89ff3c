"""What every contender of the pretraining benchmark trains on: the same weights and the same token ids."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

END = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """A Llama network and the step it is measured with.

    Args:
        config: arguments of `transformers.LlamaConfig`; embeddings are tied, as in SmolLM2.
        rows: rows a step.
        seq_len: tokens a row.
        warmup: steps before the clock starts: compilation, allocator.
        steps: steps that are timed.
    """

    config: dict[str, Any]
    rows: int
    seq_len: int
    warmup: int
    steps: int


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


SHAPES = {
    ("tiny", "cpu"): Shape(_llama(64, 2, 4, 2, 128, 1024), rows=1, seq_len=256, warmup=1, steps=2),
    ("9m", "cpu"): Shape(_llama(256, 6, 8, 4, 704, 8192), rows=2, seq_len=1024, warmup=5, steps=35),
    ("135m", "cpu"): Shape(_llama(576, 30, 9, 3, 1536, 49152), rows=2, seq_len=512, warmup=2, steps=8),
    ("9m", "cuda"): Shape(_llama(256, 6, 8, 4, 704, 8192), rows=64, seq_len=1024, warmup=20, steps=100),
    ("135m", "cuda"): Shape(_llama(576, 30, 9, 3, 1536, 49152), rows=16, seq_len=2048, warmup=10, steps=30),
    ("1b", "cuda"): Shape(_llama(2048, 16, 32, 8, 8192, 49152), rows=8, seq_len=2048, warmup=5, steps=20),
}
QUICK = Shape(SHAPES["9m", "cpu"].config, rows=2, seq_len=1024, warmup=2, steps=4)


@dataclass
class Job:
    """One measurement, as the child process reads it from a JSON file.

    Args:
        folder: transformers model folder with the initial weights, float32.
        rows: .npy file of token ids (N, seq_len).
        scratch: folder for what the contender writes.
        result: where the clock writes its figures.
        batch_size: rows a step.
        seq_len: tokens a row.
        warmup: steps that are not timed.
        steps: steps that are timed.
        precision: `32-true` or `bf16-mixed`, in Lightning's words.
        device: `cpu` or `cuda`.
        compile: whether the contender uses torch.compile, where it lets one choose.
        checkpointing: whether ours recomputes activations.
    """

    folder: str
    rows: str
    scratch: str
    result: str
    batch_size: int
    seq_len: int
    warmup: int
    steps: int
    precision: str
    device: str
    compile: bool
    checkpointing: bool = False
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    )
    max_norm: float = 1.0

    @property
    def num_steps(self) -> int:
        """All steps, those of the warm-up included."""
        return self.warmup + self.steps

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics of one run; every step has the same tokens."""
        tokens = self.steps * self.batch_size * self.seq_len
        return {
            "tokens_per_s": tokens / measured["wall_s"],
            "tokens_per_cpu_s": tokens / measured["cpu_s"],
            "peak_memory_mb": measured["peak_memory_mb"],
            "loss": measured["loss"],
        }


def prepare(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Write random weights (seed 0) as a transformers folder, and token ids of the standard library's documentation.

    Args:
        folder: an empty folder.
        shape: the network and its step.

    Returns:
        The model folder, tokenizer included, and the .npy file of rows (N, seq_len) int32, enough for all steps; where
        the corpus is shorter than that, it starts over.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from datamodules.corpora import python_docs

    texts = list(python_docs.documents())
    tokenizer = train_tokenizer(texts, shape.config["vocab_size"])
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape.config))
    model.save_pretrained(folder / "model")
    # One step more: some loops fetch a batch before they see that they are done.
    num_rows = shape.rows * (shape.warmup + shape.steps + 1)
    ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in tokenizer(texts)["input_ids"]])
    np.save(folder / "rows.npy", np.resize(ids, (num_rows, shape.seq_len)))
    return folder / "model", folder / "rows.npy"


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE for `transformers`; a corpus this small may fill less than a large vocabulary."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END)
