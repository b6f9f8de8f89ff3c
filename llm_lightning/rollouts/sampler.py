"""Samples completions from the network that is being trained, in this process."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.virtual_tokens import prompt_config
from llm_lightning.models.heads import base_model, head_scaling, output_head
from llm_lightning.models.loading.sharding import all_gathered, run_gathered
from llm_lightning.rollouts.cache import KVCacheDtype
from llm_lightning.rollouts.contract import Completion
from llm_lightning.rollouts.new_tokens import NewTokens
from llm_lightning.rollouts.sampling import Key, Sampling, draw, uniforms
from llm_lightning.rollouts.slots import Slots, rollout_mode
from llm_lightning.rollouts.snapshot import weights_as_they_are
from llm_lightning.rollouts.speculation.contract import Board, Drafter, Drafts, Speculation
from llm_lightning.rollouts.texts import Texts
from llm_lightning.rollouts.trial import fits_slots

PROMPT_TOKENS = 8192
"""Tokens of one forward pass over prompts, what they share counted once, but for a single longer prompt."""

STOP_EVERY = 8
"""Tokens of a completion after which `Stop` is asked: to ask it means to wait for the device and to read the text."""

Stop: TypeAlias = Callable[[int, Tensor], bool]
"""Whether a completion, by its number and its tokens so far, is over."""


@dataclass(frozen=True)
class Sampler:
    """A `RolloutEngine` over slots: see `slots.py`.

    A prompt is computed once for all of its completions, packed with others without padding. A finished one gives its
    slot to the next prompt, or leaves the batch.

    Args:
        sampling: how tokens are drawn.
        eos_token_ids: tokens that end a completion.
        num_slots: completions that are written at the same time, at least. Each takes keys and values for its prompt
            and itself.
        stop: ends completions that no EOS token has ended. It is asked every `stop_every` tokens, so that a few more
            may stand behind what it waits for.
        stop_every: see there.
        speculative: guesses that are checked several in a forward pass; None: each pass writes a token a slot. It
            changes no token but by the rounding of such a pass.
        kv_cache_dtype: `int8` keeps keys and values in a byte a number, for more slots or longer texts in the same
            memory; it changes probabilities a little.
    """

    sampling: Sampling
    eos_token_ids: Sequence[int]
    num_slots: int = 64
    stop: Stop | None = None
    stop_every: int = STOP_EVERY
    speculative: Speculation | None = None
    kv_cache_dtype: KVCacheDtype = "auto"

    @property
    def is_inexact(self) -> bool:
        """See `RolloutEngine`."""
        return self.kv_cache_dtype != "auto"

    @property
    def most_tokens(self) -> int:
        """That can stand behind a prompt."""
        return self.sampling.max_new_tokens

    def check(self, tokenizer: Any) -> None:
        """Raise `UserError` for drafts that cannot be those of a model with this tokenizer."""
        if self.speculative is not None:
            self.speculative.check(tokenizer, "model.engine.speculative")

    @torch.no_grad()
    def sample(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> list[Completion]:
        """See `RolloutEngine`."""
        network = base_model(model)
        # Parts that lie on other ranks are fetched once, and not for every token.
        return run_gathered(network, self._write, model, prompts, keys)

    def begin(
        self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]
    ) -> Callable[[], list[Completion]]:
        """See `AsynchronousEngine`; what is trained of the weights is copied."""
        return partial(self.sample, weights_as_they_are(model), prompts, keys)

    def _write(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> list[Completion]:
        network = base_model(model)
        writing = _Writing(model, self, prompts, keys)
        with rollout_mode(network, writing.has_slots), all_gathered(network):
            while writing.advance():
                pass
        return writing.completions()

    @torch.no_grad()
    def stream(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Key]) -> Iterator[tuple[int, Completion]]:
        """One completion to each prompt as they are done, each with its prompt's number.

        The network is in the sampler's hands until the last one.
        """
        writing = _Writing(model, self, prompts, [[key] for key in keys])
        with rollout_mode(base_model(model), writing.has_slots):
            while writing.advance():
                yield from writing.left()
        yield from writing.left()


class _Writing:
    """One call of the sampler: what is waiting, what is being written, and what is done."""

    def __init__(self, model: Any, sampler: Sampler, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> None:
        network = base_model(model)
        self.sampler, self.prompts = sampler, prompts
        self.device = network.device
        self.head, self.scaling = output_head(network), head_scaling(network)
        self.num_samples = len(keys[0]) if keys else 0
        count, longest = len(keys) * self.num_samples, sampler.sampling.max_new_tokens
        flat = [key for group in keys for key in group]
        self.uniforms = (
            uniforms(flat, longest).to(self.device) if flat else torch.zeros(0, longest, dtype=torch.float32)
        )
        self.eos = torch.tensor(list(sampler.eos_token_ids), dtype=torch.int64, device=self.device)
        self.waiting = deque(range(len(prompts)))
        # Virtual tokens stand before whole texts.
        self.has_slots = prompt_config(model) is None and fits_slots(network)
        if sampler.kv_cache_dtype != "auto" and not self.has_slots:
            raise UserError(
                f"kv_cache_dtype={sampler.kv_cache_dtype}: {type(network).__name__} as it is here writes without a "
                "cache that could be rounded; leave the setting out."
            )
        self.slots: Slots | Texts = Slots(network, sampler.kv_cache_dtype) if self.has_slots else Texts(model)
        # Of each slot: its completion's number, how many tokens it has, its newest one, and whether it is over.
        self.numbers = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.newest, self.is_over = self.numbers, self.numbers.bool()
        self.leaving: list[Tensor] = []
        self.tokens = torch.zeros(count, longest, dtype=torch.int64, device=self.device)
        self.logprobs = torch.zeros(count, longest, dtype=torch.float32, device=self.device)
        self.num_tokens = torch.zeros(count, dtype=torch.int64, device=self.device)
        self.is_finished = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.num_unasked = 0
        self.drafter: Drafter | None = None
        if sampler.speculative is not None:
            self.drafter = sampler.speculative.drafter(model, sampler.sampling, prompts, self.num_samples)

    def advance(self) -> bool:
        """Admit prompts where there is room, then write a token a slot, or several; False once all is written."""
        self._stop()
        self._leave()
        if self.waiting and len(self.slots) + self.num_samples <= max(self.sampler.num_slots, self.num_samples):
            self._admit()
        if not len(self.slots):
            return False
        drafts = self._drafts()
        if drafts is None:
            self._write(self.slots.append(self.newest), slice(None))
        else:
            self._write_several(drafts)
        return True

    def completions(self) -> list[Completion]:
        """All completions, in the order of their keys."""
        tokens, logprobs = self.tokens.cpu(), self.logprobs.cpu()
        lengths, finished = self.num_tokens.tolist(), self.is_finished.tolist()
        return [Completion(t[:n], p[:n], f) for t, p, n, f in zip(tokens, logprobs, lengths, finished, strict=True)]

    def left(self) -> Iterator[tuple[int, Completion]]:
        """The completions that have given up their slots since this was asked last, by number."""
        chosen, self.leaving = self.leaving, []
        for number in (number for numbers in chosen for number in numbers.tolist()):
            count = int(self.num_tokens[number])
            tokens, logprobs = self.tokens[number, :count].cpu(), self.logprobs[number, :count].cpu()
            yield number, Completion(tokens, logprobs, bool(self.is_finished[number]))

    def _stop(self) -> None:
        """Let end what the caller says is over."""
        self.num_unasked += 1
        if self.sampler.stop is None or self.num_unasked < self.sampler.stop_every:
            return
        self.num_unasked = 0
        numbers, over = self.numbers.tolist(), self.is_over.tolist()
        tokens, lengths = self.tokens[self.numbers].cpu(), self.num_tokens[self.numbers].tolist()
        for slot, number in enumerate(numbers):
            if not over[slot]:
                over[slot] = self.sampler.stop(number, tokens[slot, : lengths[slot]])
        self.is_over = torch.tensor(over, dtype=torch.bool, device=self.device)

    def _leave(self) -> None:
        """Take out finished completions, once they are a quarter of the slots: each time costs a copy of the rest."""
        num_over = int(self.is_over.sum())
        if num_over == 0 or (num_over < len(self.slots) // 4):
            return
        self.leaving.append(self.numbers[self.is_over])
        index = (~self.is_over).nonzero().squeeze(1)
        self.slots.keep(index)
        self.numbers, self.newest, self.is_over = self.numbers[index], self.newest[index], self.is_over[index]

    def _admit(self) -> None:
        """Compute the next prompts, as many as there is room for, and draw the first token of their completions."""
        room = max(1, (self.sampler.num_slots - len(self.slots)) // self.num_samples)
        numbers = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        prompts = [self.prompts[number] for number in numbers]
        for places, states in self.slots.admit(prompts, self.num_samples, PROMPT_TOKENS):
            first = torch.tensor([numbers[place] for place in places], device=self.device)[:, None] * self.num_samples
            fresh = (first + torch.arange(self.num_samples, device=self.device)).flatten()
            former = len(self.numbers)
            self.numbers = torch.cat([self.numbers, fresh])
            self.newest = torch.cat([self.newest, fresh])
            self.is_over = torch.cat([self.is_over, torch.zeros_like(fresh, dtype=torch.bool)])
            self._write(states.repeat_interleave(self.num_samples, 0), slice(former, None))

    def _write(self, states: Tensor, rows: slice) -> None:
        """Draw the next token of these slots from their last hidden states (n, H)."""
        numbers, over = self.numbers[rows], self.is_over[rows]
        place = self.num_tokens[numbers]
        last = self.tokens.shape[1] - 1
        logits = self.scaling(self.head(states)).float()
        tokens, logprobs = draw(logits, self.uniforms[numbers, place.clamp(max=last)], self.sampler.sampling)
        alive = (~over).nonzero().squeeze(1)
        self.newest[rows] = tokens
        numbers, place, tokens = numbers[alive], place[alive], tokens[alive]
        self.tokens[numbers, place], self.logprobs[numbers, place] = tokens, logprobs[alive]
        self.num_tokens[numbers] += 1
        ends = torch.isin(tokens, self.eos)
        self.is_finished[numbers] = ends
        over[alive] = ends | (place == last)
        self.is_over[rows] = over

    def _drafts(self) -> Drafts | None:
        if self.drafter is None:
            return None
        board = Board(self.numbers, self.is_over, self.tokens, self.num_tokens, self.uniforms, self.slots.cost)
        return self.drafter.draft(board)

    def _write_several(self, drafts: Drafts) -> None:
        """Draw for all slots and their drafts in one pass: of a draft as many tokens as are right, and one more.

        What is drawn behind a wrong token is drawn anew, with the same random number, once the text before it is known.
        """
        counts = 1 + drafts.counts
        new = NewTokens.ragged(self.num_tokens[self.numbers], counts)
        states = self.slots.extend(drafts.packed(self.newest), counts)
        logits = self.scaling(self.head(states)).float()
        numbers, last = self.numbers[new.rows], self.tokens.shape[1] - 1
        drawn, logprobs = draw(logits, self.uniforms[numbers, new.places.clamp(max=last)], self.sampler.sampling)
        by_slot = drawn.new_full((len(counts), new.most), -1)
        by_slot[new.rows, new.offsets] = drawn
        ends = torch.isin(by_slot, self.eos)
        kept = 1 + torch.minimum(drafts.num_right(by_slot), (ends.cumsum(1) == 0).sum(1))
        self.slots.take_back(counts - kept)
        self.num_unasked += int(kept.max()) - 1
        written = (new.offsets < kept[new.rows]) & ~self.is_over[new.rows]
        place = numbers[written], new.places[written]
        self.tokens[place], self.logprobs[place] = drawn[written], logprobs[written]
        alive, newest = self.numbers[~self.is_over], kept[:, None] - 1
        self.newest = by_slot.gather(1, newest).squeeze(1)
        self.num_tokens[alive] += kept[~self.is_over]
        self.is_finished[alive] = ends.gather(1, newest).squeeze(1)[~self.is_over]
        self.is_over = self.is_over | self.is_finished[self.numbers] | (self.num_tokens[self.numbers] > last)
