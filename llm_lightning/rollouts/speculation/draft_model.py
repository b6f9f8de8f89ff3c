"""Drafts from a smaller network: the pruned, quantized or distilled one of a model."""

from collections.abc import Sequence, Set
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import base_model, head_scaling, output_head
from llm_lightning.models.loading.new_tokens import read_tokenizer
from llm_lightning.rollouts.sampling import Sampling, draw
from llm_lightning.rollouts.slots import Slots, rollout_mode
from llm_lightning.rollouts.speculation.budget import ALLOWANCE, Ledger, Rates, allot
from llm_lightning.rollouts.speculation.contract import Board, Cost, Drafter, Drafts, Speculation
from llm_lightning.rollouts.speculation.reading import Reading, Readings
from llm_lightning.rollouts.trial import fits_slots

START = 0.7
"""How often a token is right, before any was seen."""

TRY_AGAIN = 16
"""Passes without any draft after which one is tried, where that can be afforded: without drafts nothing is learned."""

PROMPT_TOKENS = 8192
"""As the sampler's."""

EMPTY = np.zeros(0, np.int64)


class DraftModel(Speculation):
    """Speculative decoding (arXiv:2211.17192) by a network with the tokenizer of the one that writes. It draws each
    token with the random number of its position, so that it arrives at the same one wherever the two agree.

    Args:
        path: folder, .gguf file or hub id.
        num_tokens: at most so many tokens a draft; how many is decided by how often they are right.
        cost: what a forward pass of it costs, beside one of the network that writes; by default the share of its
            parameters. Give it for a quantized one.
        dtype: of its weights; by default that of the network that writes.
    """

    def __init__(
        self,
        path: str,
        num_tokens: int = 5,
        cost: float | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> None:
        self.path, self.num_tokens, self.cost, self.dtype = path, num_tokens, cost, dtype
        self._networks: dict[tuple[str, str], Any] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """Of the draft."""
        return read_tokenizer(self.path)

    def check(self, tokenizer: Any, field: str) -> None:
        """See `Speculation`; here also for a draft with another vocabulary."""
        if self.num_tokens < 1:
            raise UserError(f"{field}.num_tokens={self.num_tokens} must be at least 1.")
        if self.cost is not None and self.cost <= 0:
            raise UserError(f"{field}.cost={self.cost} must be above 0; leave it out for the share of the parameters.")
        Backbone(path=self.path).read_config()
        try:
            own = self.tokenizer
        except (OSError, ValueError) as error:
            raise UserError(f"{field}.path={self.path!r} has no tokenizer that can be read: {error}") from error
        if tokenizer is None:
            return
        if (difference := _difference(own.get_vocab(), tokenizer.get_vocab())) is not None:
            raise UserError(
                f"{field}.path={self.path!r} has another vocabulary than the model: {difference}. A draft needs the "
                "model's own tokenizer: name one that was pruned, quantized or distilled from it, or take PromptLookup."
            )

    def network(self, writer: Any) -> Any:
        """The draft, on the device of the network that writes; read at the first use.

        Raises:
            UserError: it cannot write into slots.
        """
        dtype = self.dtype or str(writer.dtype).removeprefix("torch.")
        place = (str(writer.device), dtype)
        if place not in self._networks:
            with writer.device:
                backbone = Backbone(path=self.path, dtype=dtype)  # type: ignore[arg-type]
                network = backbone.build(self.tokenizer).eval().requires_grad_(False)
            if not fits_slots(network):
                raise UserError(
                    f"speculative.path={self.path!r}: {type(network).__name__} keeps no keys and values that tokens "
                    "can be taken back from, so its drafts would cost too much: name another, or take PromptLookup."
                )
            self._networks[place] = network
        return self._networks[place]

    def drafter(self, network: Any, sampling: Sampling, prompts: Sequence[Tensor], num_samples: int) -> Drafter:
        """See `Speculation`."""
        network = base_model(network)
        draft = self.network(network)
        cost = self.cost if self.cost is not None else _num_parameters(draft) / _num_parameters(network)
        vocab_size = network.config.get_text_config(decoder=True).vocab_size
        return _Model(draft, min(cost, 1.0), vocab_size, self.num_tokens, sampling, prompts, num_samples)

    def release(self) -> None:
        """See `Speculation`."""
        self._networks.clear()


class _Model(Drafter):
    """A second set of slots, of the completions that were drafted for; a draft first reads what came since."""

    def __init__(
        self,
        network: Any,
        cost: float,
        vocab_size: int,
        num_tokens: int,
        sampling: Sampling,
        prompts: Sequence[Tensor],
        num_samples: int,
    ) -> None:
        self.network, self.cost, self.vocab_size, self.num_tokens = network, cost, vocab_size, num_tokens
        self.head, self.scaling, self.sampling = output_head(network), head_scaling(network), sampling
        config = network.config.get_text_config(decoder=True)
        self.context = getattr(config, "max_position_embeddings", None) or 2**31
        self.rates = Rates(1, START)
        self.readings = Readings(prompts, num_samples, self.rates)
        self.slots = Slots(network)
        self.numbers: list[int] = []  # of the draft's slots
        self.num_idle, self.ledger = 0, Ledger()
        # Tokens that were written before it, its cost without drafts, and its cost.
        self.last_pass: tuple[int, float, float] | None = None
        self.num_alive = 0

    def draft(self, board: Board) -> Drafts | None:
        known = self.readings.by_number.keys()
        readings = self.readings.update(board)
        self._balance(board, self.readings.by_number.keys() - known)
        self._forget_wrong()
        limits = [0 if one is None else self._limit(one) for one in readings]
        rates = [0.0 if one is None else self.rates.of(one.tally, 0) for one in readings]
        counts = allot(rates, limits, len(self.readings.by_number), board.cost, self.cost).tolist()
        self.num_idle = 0 if any(counts) else self.num_idle + 1
        if self.num_idle >= TRY_AGAIN and any(limits):
            counts[max(range(len(limits)), key=lambda slot: (limits[slot] > 0, rates[slot]))] = 1
        numbers = board.numbers.tolist()
        wanted = {number: count for number, count in zip(numbers, counts, strict=True) if count}
        wanted, cost = self._affordable(wanted, board.cost)
        guesses = self._guesses(wanted, board)
        for number, guess in guesses.items():
            self.readings.by_number[number].hold(guess, 0)
        num_read = len(numbers) + sum(map(len, guesses.values()))
        plain, paid = (float(board.cost(np.array(count))) for count in (len(numbers), num_read))
        self.last_pass = int(board.num_tokens.sum()), plain, paid + cost
        return Drafts.of([guesses.get(number, []) for number in numbers], board.numbers.device)

    def _balance(self, board: Board, new: Set[int]) -> None:
        """Enter what the last pass cost and brought."""
        if self.last_pass is not None and self.num_alive:
            former, plain, paid = self.last_pass
            num_written = int(board.num_tokens.sum()) - former - len(new)
            self.ledger.enter(num_written / self.num_alive, plain, paid)
        for number in new:
            if number % self.readings.num_samples == 0:
                self.ledger.credit += ALLOWANCE * self.readings.by_number[number].num_prompt
        self.num_alive = len(self.readings.by_number)

    def _affordable(self, wanted: dict[int, int], cost: Cost) -> tuple[dict[int, int], float]:
        """The completions that drafts can be paid for, those first of which the draft has read the most, and the price.

        A text that the draft has not read is dear, however good its guesses are.
        """
        read = dict(zip(self.numbers, self.slots.lengths.tolist(), strict=True))
        unread = {number: self.readings.by_number[number].length - read.get(number, 0) for number in wanted}
        chosen: dict[int, int] = {}
        num_unread, price = 0, 0.0
        for number in sorted(wanted, key=lambda number: unread[number]):
            num_unread += unread[number]
            depth = max([*chosen.values(), wanted[number]])
            passes = cost(np.array([num_unread] + [len(chosen) + 1] * (depth - 1)))
            if (total := self.cost * float(passes.sum())) > max(self.ledger.credit, 0.0):
                break
            chosen[number], price = wanted[number], total
        if chosen:
            self.num_idle = 0
        return chosen, price

    def _limit(self, reading: Reading) -> int:
        return max(0, min(self.num_tokens, reading.num_left - 1, self.context - reading.length))

    def _forget_wrong(self) -> None:
        """Give up the slots of completions that are over, and take back from the others what was not written."""
        by_number = self.readings.by_number
        kept = [slot for slot, number in enumerate(self.numbers) if number in by_number]
        if len(kept) < len(self.numbers):
            self.numbers = [self.numbers[slot] for slot in kept]
            self.slots.keep(torch.tensor(kept, dtype=torch.int64, device=self.slots.lengths.device))
        read = self.slots.lengths.tolist()
        wrong = [0] * len(read)
        for slot, number in enumerate(self.numbers):
            wrong[slot] = max(0, read[slot] - by_number[number].guess_at - by_number[number].num_right)
        if any(wrong):
            self.slots.take_back(torch.tensor(wrong).to(self.slots.lengths.device))
        for one in by_number.values():
            one.hold([], 0)

    def _guesses(self, wanted: dict[int, int], board: Board) -> dict[int, list[int]]:
        """So many tokens for each of these completions."""
        if not wanted:
            return {}
        texts = {number: self.readings.by_number[number].text for number in wanted}
        with rollout_mode(self.network):
            new = [number for number in wanted if number not in self.numbers]
            prompts = [torch.from_numpy(texts[number][:-1].copy()) for number in new]
            for places, _ in self.slots.admit(prompts, 1, PROMPT_TOKENS) if new else ():
                self.numbers += [new[place] for place in places]
            tokens = self._draw(texts, wanted, board)
        guesses: dict[int, list[int]] = {number: [] for number in wanted}
        for level, drawn in enumerate(tokens):
            for number, token in zip(
                (n for n in self.numbers if wanted.get(n, 0) > level), drawn.tolist(), strict=True
            ):
                guesses[number].append(token)
        return {number: list(takewhile(lambda token: token < self.vocab_size, own)) for number, own in guesses.items()}

    def _draw(self, texts: dict[int, np.ndarray], wanted: dict[int, int], board: Board) -> list[Tensor]:
        """Of each level the tokens of those completions that want so many, in the order of the draft's slots."""
        device = self.slots.lengths.device
        read, drawn = self.slots.lengths.tolist(), list[Tensor]()
        parts = [texts[n][read[slot] :] if n in wanted else EMPTY for slot, n in enumerate(self.numbers)]
        tokens = torch.from_numpy(np.concatenate(parts)).to(device)
        counts = torch.tensor([len(part) for part in parts]).to(device)
        for level in range(max(wanted.values())):
            numbers = [number for number in self.numbers if wanted.get(number, 0) > level]
            if level:
                counts = torch.tensor([int(wanted.get(number, 0) > level) for number in self.numbers]).to(device)
                former = [number for number in self.numbers if wanted.get(number, 0) >= level]
                tokens = drawn[-1][[place for place, number in enumerate(former) if number in set(numbers)]]
            states = self.slots.extend(tokens, counts)
            index = torch.tensor(numbers).to(device)
            logits = self.scaling(self.head(states[(counts.cumsum(0) - 1)[counts > 0]])).float()
            uniforms = board.uniforms[index, board.num_tokens[index] + level]
            drawn.append(draw(logits, uniforms, self.sampling)[0])
        return drawn


def _num_parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _difference(own: dict[str, int], other: dict[str, int]) -> str | None:
    """The first id that says something else in another vocabulary; what one has beyond the other's end is no matter."""
    end = min(len(own), len(other))
    mine, theirs = ({place: token for token, place in each.items() if place < end} for each in (own, other))
    for place in range(end):
        if mine.get(place) != theirs.get(place):
            return f"its token {place} is {mine.get(place)!r}, and not {theirs.get(place)!r}"
    return None
