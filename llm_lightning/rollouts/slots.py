"""Keys and values of the completions that are being written: one slot a completion, no padding before any.

A slot starts at position 0 and is as long as its own prompt and completion. New tokens are appended where each slot
ends, so completions of different ages stand side by side, and a slot is given up as soon as its completion is over. The
network's attention reads and writes the slots by itself (`ROLLOUT_ATTENTION`), which works for every architecture that
goes through transformers' attention interface.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_lightning.errors import UserError
from llm_lightning.models.attention import Branches, Documents, document_attention, with_attention
from llm_lightning.models.attention.plain import softmax_with_sinks
from llm_lightning.models.attention.sharing import SharedRow, in_sharing_order
from llm_lightning.models.running.evaluating import evaluating
from llm_lightning.rollouts.cache import CACHES, KVCacheDtype
from llm_lightning.rollouts.new_tokens import NewTokens

ROLLOUT_ATTENTION = "llm_lightning_rollout"

ROOM = 64
"""Slots grow by so many tokens at once: few shapes, and few copies."""

PASS_COST = {"cpu": 28, "cuda": 256}
"""What a forward pass costs beside its tokens, in tokens, by the kind of device: reading the weights, mostly. The CPU's
is measured (benchmarks/speculative.py --costs), a GPU's is assumed. Too low a value only leaves drafts out."""

SINGLE_TOKEN_COST = 0.6
"""What a CPU takes for a single token, against the least of a pass over several: it multiplies by vectors then."""

MOST_OWN = 0.75
"""Share of the prompts' tokens that may be their own where they are computed as branches: documents run faster."""


class Slots:
    """The completions that are being written.

    Args:
        network: a transformers network in `rollout_mode`.
        kv_cache_dtype: of keys and values.

    Attributes:
        lengths: (S,) int64, tokens of each slot that keys and values are there for.
        keys, values: of all slots.
    """

    def __init__(self, network: Any, kv_cache_dtype: KVCacheDtype = "auto") -> None:
        self.network = network
        self.lengths = torch.zeros(0, dtype=torch.int64, device=network.device)
        self.keys, self.values = CACHES[kv_cache_dtype](), CACHES[kv_cache_dtype]()
        self._writing_prompts: tuple[Tensor, Tensor] | None = None
        self._new = NewTokens.one_each(self.lengths)
        self._hidden = torch.zeros(0)

    def __len__(self) -> int:
        return len(self.lengths)

    def admit(
        self, prompts: Sequence[Tensor], num_samples: int, most_tokens: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Open `num_samples` slots for each of the new prompts, some prompts in each forward pass.

        What prompts begin with in common is computed once, where that spares enough.

        Args:
            prompts: each (n,) int64.
            num_samples: of each.
            most_tokens: of a forward pass, what they share counted once, but for a single longer prompt.

        Yields:
            The numbers of N prompts, and their last states (N, H).
        """
        device = self.network.device
        for row, places in _rows_of([prompt.cpu().numpy() for prompt in prompts], most_tokens):
            longest = max(map(len, places.values()))
            # Behind its end a slot holds copies of its prompt's last token, which no mask ever lets through.
            padded = [np.pad(each, (0, longest - len(each)), "edge") for each in places.values()]
            index = torch.from_numpy(np.array(padded)).to(device)
            lengths = torch.tensor([len(each) for each in places.values()]).to(device)
            with self.prompts(index, lengths, num_samples):
                decoder = self.network.get_decoder()
                states = decoder(**row.batch(device), use_cache=False, slots=self).last_hidden_state[0]
            yield list(places), states[index[:, -1]]

    def append(self, tokens: Tensor) -> Tensor:
        """(S, H) last states once each slot has one more token, (S,)."""
        with self._more_tokens(NewTokens.one_each(self.lengths)):
            inputs = {"input_ids": tokens[:, None], "position_ids": self.lengths[:, None]}
            return self.network.get_decoder()(**inputs, use_cache=False, slots=self).last_hidden_state[:, 0]

    def extend(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """(N, H) states of new tokens (N,), of which the slots get so many each, (S,), one slot's after the other's."""
        new = NewTokens.ragged(self.lengths, counts)
        with self._more_tokens(new):
            inputs = {"input_ids": tokens[None], "position_ids": new.places[None]}
            return self.network.get_decoder()(**inputs, use_cache=False, slots=self).last_hidden_state[0]

    def take_back(self, counts: Tensor) -> None:
        """Let each slot forget so many of its newest tokens, (S,)."""
        # What stands behind a slot's end is let through by no mask, and written over.
        self.lengths = self.lengths - counts

    def cost(self, num_tokens: np.ndarray) -> np.ndarray:
        """Of a forward pass over so many tokens, about, in tokens. What devices do alike, so that a run can be repeated
        bit for bit: not what the clock says."""
        fixed = PASS_COST.get(self.lengths.device.type, PASS_COST["cuda"])
        single = SINGLE_TOKEN_COST if self.lengths.device.type == "cpu" else 1.0
        return np.where(num_tokens == 1, single, 1.0) * (fixed + num_tokens)

    @contextmanager
    def prompts(self, places: Tensor, lengths: Tensor, num_samples: int) -> Iterator[None]:
        """Open slots for prompts in one row whose forward pass runs inside of this context.

        Args:
            places: (P, longest) int64 where each prompt's tokens stand in the row.
            lengths: (P,) of the prompts.
            num_samples: slots a prompt; they share its one computation.
        """
        self.lengths = torch.cat([self.lengths, lengths.repeat_interleave(num_samples)])
        room = torch.tensor(self._room_for(places.shape[1]))
        self._writing_prompts = places.repeat_interleave(num_samples, 0), room
        try:
            yield
        finally:
            self._writing_prompts = None

    @contextmanager
    def _more_tokens(self, new: NewTokens) -> Iterator[None]:
        """A forward pass over new tokens inside of this context."""
        lengths = self.lengths + new.counts
        room = self._room_for(int(lengths.max()))
        ends = self.lengths[:, None] + torch.arange(new.most, device=lengths.device)
        self._new, self._hidden = new, torch.arange(room, device=lengths.device) > ends[:, :, None]
        self._grow(room)
        yield
        self.lengths = lengths

    def keep(self, index: Tensor) -> None:
        """Give up all slots but those of `index` (int64), and the room that no longer is needed."""
        self.lengths = self.lengths[index]
        room = self._room_for(int(self.lengths.max()) + 1) if len(index) else 0
        self.keys.keep(index, room)
        self.values.keep(index, room)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """(S, heads, 1, D) or (1, heads, N, D) to (S, 1, heads, D) or (1, N, heads, D); key and value are kept."""
        layer, new = module.layer_idx, self._new
        for cache, fresh in ((self.keys, key), (self.values, value)):
            cache.write(layer, new.rows, new.places, fresh.transpose(1, 2).flatten(0, 1))
        keys, key_scales = self.keys.read(layer, key.dtype)
        values, value_scales = self.values.read(layer, value.dtype)
        hidden = self._hidden
        if window is not None:
            ends = self.lengths[:, None] + torch.arange(new.most, device=hidden.device)
            hidden = hidden | (torch.arange(hidden.shape[2], device=hidden.device) <= ends[:, :, None] - window)
        query = new.by_slot(query)
        S, heads, W, D = query.shape
        # The query heads that share a key head stand where several tokens would. Plain products: one query of a flash
        # kernel costs several times as much on CPU (benchmarks/ppo.py).
        grouped = query.reshape(S, keys.shape[1], -1, D) * (D**-0.5 if scaling is None else scaling)
        scores = (grouped @ keys.transpose(2, 3)).float()
        if key_scales is not None:
            scores = scores * key_scales[:, :, None]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.reshape(S, heads, W, -1).masked_fill_(hidden[:, None], -torch.inf)
        weights = softmax_with_sinks(scores, sinks).reshape(S, keys.shape[1], -1, scores.shape[-1])
        if value_scales is not None:
            weights = weights * value_scales[:, :, None]
        return new.as_read((weights.to(values.dtype) @ values).reshape(S, heads, W, values.shape[-1]))

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the keys and values (1, KV heads, N, D) of packed prompts."""
        assert self._writing_prompts is not None
        index, room = self._writing_prompts
        for cache, packed in ((self.keys, key), (self.values, value)):
            cache.admit(layer, packed[0][:, index].transpose(0, 1), int(room))

    @property
    def are_prompts(self) -> bool:
        """Whether the forward pass that runs is one over packed prompts."""
        return self._writing_prompts is not None

    def _room_for(self, num_tokens: int) -> int:
        return -(-num_tokens // ROOM) * ROOM

    def _grow(self, room: int) -> None:
        self.keys.grow(room)
        self.values.grow(room)


def _rows_of(prompts: Sequence[np.ndarray], most_tokens: int) -> Iterator[tuple[SharedRow, dict[int, np.ndarray]]]:
    """Rows of prompts, and by the prompts' numbers where in a row the tokens of each stand."""
    row, places = SharedRow(), dict[int, np.ndarray]()
    for number in in_sharing_order(prompts):
        if places and row.length + row.surplus(prompts[number]) > most_tokens:
            yield _worth_its_branches(prompts, row, places)
            row, places = SharedRow(), {}
        places[number] = row.add(prompts[number])
    yield _worth_its_branches(prompts, row, places)


def _worth_its_branches(
    prompts: Sequence[np.ndarray], row: SharedRow, places: dict[int, np.ndarray]
) -> tuple[SharedRow, dict[int, np.ndarray]]:
    """The row, in the order of the numbers; where it spares too little, one in which all stand for themselves."""
    numbers = sorted(places)
    if row.length <= MOST_OWN * sum(map(len, places.values())):
        return row, {number: places[number] for number in numbers}
    row = SharedRow(shares=False)
    return row, {number: row.add(prompts[number]) for number in numbers}


def rollout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: Slots,
    documents: Documents | Branches | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function while completions are written: over packed prompts, or over the slots."""
    if kwargs.get("position_bias") is not None:
        raise UserError(f"{type(module).__name__} needs 'position_bias' in its attention, which rollouts do not have.")
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if not slots.are_prompts:
        return slots.attend(module, query, key, value, scaling, sliding_window, softcap, sinks), None
    layer: Any = module.layer_idx
    slots.store(layer, key, value)
    return document_attention(
        module,
        query,
        key,
        value,
        None,
        scaling=scaling,
        documents=documents,
        sliding_window=sliding_window,
        softcap=softcap,
        s_aux=sinks,
    )


@contextmanager
def rollout_mode(network: Any, with_slots: bool = True) -> Iterator[None]:
    """The network is without dropout inside of this context, and reads and writes slots where it can."""
    from transformers import AttentionInterface

    # A name without a mask function of its own: transformers then makes no mask.
    AttentionInterface.register(ROLLOUT_ATTENTION, rollout_attention)
    config = network.config.get_text_config(decoder=True)
    with with_attention(config, ROLLOUT_ATTENTION) if with_slots else nullcontext(), evaluating(network):
        yield
