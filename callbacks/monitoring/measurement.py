"""What a network is worth and what it costs: perplexity, tokens/s, bytes; and such figures as a table.

All of it takes any `transformers.PreTrainedModel`, or a `peft.PeftModel` around one whose adapter is in its layers, as
it is: networks that differ in weights, sizes or the classes of their layers are measured in the same way.
"""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.errors import CallbackError
from callbacks.monitoring.flops import synchronize
from callbacks.network import base_network, evaluating
from callbacks.trainer_parts import datamodule_of

CHUNK_TOKENS = 256
"""Tokens whose logits are in memory at once: at a vocabulary of 49,152 they take 50 MB."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quality:
    """How well a network predicts.

    Args:
        loss: mean negative log-likelihood of a token, in nats.
        num_tokens: how many tokens that is the mean of.
        kl: mean of KL(reference || network) of the distributions of a token, in nats; None without a reference.
        top_token_agreement: share of the tokens where both find the same one the most likely; None without a reference.
    """

    loss: float
    num_tokens: int
    kl: float | None = None
    top_token_agreement: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class Speed:
    """How fast a network writes one text.

    Args:
        prefill_tokens_per_s: tokens of a prompt read in a second.
        decode_tokens_per_s: tokens written in a second, one after the other.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def validation_batches(trainer: Trainer, num_batches: int) -> list[dict[str, Tensor]]:
    """The first batches of the run's validation data, on the CPU; on several ranks, of this rank's part.

    Args:
        trainer: In or after a fit.
        num_batches: How many at most.

    Raises:
        CallbackError: The run has no validation data.
    """
    loaders = trainer.val_dataloaders
    if loaders is None and (datamodule := datamodule_of(trainer)) is not None:
        loaders = datamodule.val_dataloader()
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    batches = list(islice(chain.from_iterable(loader for loader in loaders if loader is not None), num_batches))
    if not batches:
        raise CallbackError("There is no validation data to measure on: give some, for example by data.val_share=0.05.")
    return batches


@torch.no_grad()
def measure_quality(network: Any, batches: Iterable[Batch], reference: Any = None) -> Quality:
    """Loss and perplexity over all trained tokens of the batches, each token counted once.

    Documents of a packed row do not see each other. The logits of `CHUNK_TOKENS` tokens are in memory at once.

    Args:
        network: Put in eval mode meanwhile.
        batches: `input_ids` (B, T), `labels` (B, T), not shifted, -100 where a token does not count, and where they are
            there `position_ids` (B, T), which start anew at each document of a packed row, and `attention_mask` (B, T).
        reference: A network of the same vocabulary to compare the distributions with.

    Raises:
        CallbackError: There is no token to predict in the batches.
    """
    sums, num_tokens = torch.zeros(3, dtype=torch.float64), 0
    with as_measured(network), nullcontext() if reference is None else as_measured(reference):
        for batch in batches:
            states, targets = target_states(network, batch)
            expected = None if reference is None else target_states(reference, batch)[0].split(CHUNK_TOKENS)
            chunks = zip(states.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
            for i, (h, y) in enumerate(chunks):
                logprobs = logits_of(network, h).log_softmax(-1)
                sums[0] += F.nll_loss(logprobs, y, reduction="sum").cpu()
                if expected is not None:
                    sums[1:] += _divergence(logprobs, logits_of(reference, expected[i]).log_softmax(-1)).cpu()
            num_tokens += len(targets)
    if not num_tokens:
        raise CallbackError("There is no token to predict in the batches to measure on: all labels are -100.")
    loss, kl, agreement = (sums / num_tokens).tolist()
    return Quality(loss, num_tokens) if reference is None else Quality(loss, num_tokens, kl, agreement)


def _divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Summed over tokens, of (N, V) each: KL(reference || network), and how many top tokens are the same."""
    ref_logprobs = ref_logprobs.to(logprobs.device)
    kl = F.kl_div(logprobs, ref_logprobs, log_target=True, reduction="sum")
    same = (logprobs.argmax(-1) == ref_logprobs.argmax(-1)).sum()
    return torch.stack([kl, same.to(kl.dtype)])


@torch.no_grad()
def measure_speed(network: Any, prompt_ids: Tensor, num_new_tokens: int = 32, repeats: int = 3) -> Speed:
    """Median speed of reading one prompt and of writing behind it, greedily, with a key-value cache.

    The first run warms up and is not counted. Threads are those of the process.

    Args:
        network: Put in eval mode meanwhile.
        prompt_ids: (1, P); as long as prompts are where the network will be used.
        num_new_tokens: Tokens to write in each run, one after the other. 32 take a 135M network about a second.
        repeats: Runs that are counted.
    """
    from transformers import DynamicCache

    decoder, prompt_ids = base_network(network).get_decoder(), prompt_ids.to(network.device)
    prefill, decode = [], []
    with as_measured(network):
        for _ in range(1 + repeats):
            cache, ids = DynamicCache(config=decoder.config), prompt_ids
            times = [_now(network.device)]
            for _ in range(1 + num_new_tokens):
                states = decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
                ids = logits_of(network, states[:, -1]).argmax(-1, keepdim=True)
                if len(times) == 1:
                    times.append(_now(network.device))
            times.append(_now(network.device))
            prefill.append(prompt_ids.shape[1] / (times[1] - times[0]))
            decode.append(num_new_tokens / (times[2] - times[1]))
    return Speed(statistics.median(prefill[1:]), statistics.median(decode[1:]))


def memory_bytes(network: torch.nn.Module) -> int:
    """Bytes of all weights and buffers in memory, shared ones once; tensors of several parts with all their parts."""
    state: dict[str, Any] = network.state_dict()
    tensors = [part for tensor in chain(state.values(), network.buffers()) for part in _parts(tensor)]
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as plain text: the first column to the left, the others to the right, two spaces between."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)


@contextmanager
def as_measured(network: Any) -> Iterator[None]:
    """The network in eval mode, eager, with an attention of transformers' own.

    An attention function that is told the documents of a packed row by its module would not know of them here;
    transformers finds them in `position_ids`.
    """
    base = base_network(network)
    attention = base.config._attn_implementation
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    try:
        with evaluating(network):
            yield
    finally:
        base.set_attn_implementation(attention)


def target_states(network: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last hidden states (N, H) before the N trained tokens of a batch, and these tokens (N,)."""
    names = ("input_ids", "position_ids", "attention_mask")
    inputs = {name: batch[name].to(network.device) for name in names if name in batch}
    states = base_network(network).get_decoder()(**inputs, use_cache=False).last_hidden_state
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100).to(network.device)
    return states[targets != -100], targets[targets != -100]


def logits_of(network: Any, states: Tensor) -> Tensor:
    """Float32 logits (..., V) of last hidden states (..., H), scaled and capped as the architecture does it."""
    base = base_network(network)
    config = base.config.get_text_config()
    logits = base.get_output_embeddings()(states).float()
    # Cohere, Falcon-H1, Granite, Gemma
    logits *= getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    logits /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor consists of."""
    if not isinstance(tensor, Tensor):
        return
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))
