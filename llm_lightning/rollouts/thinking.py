"""Thoughts before an answer, of a length that is given: budget forcing (arXiv:2501.19393).

Budgets are counted in token ids, and what the model wrote is never tokenized anew: it is read on as it was written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.rollouts.cache import KVCacheDtype
from llm_lightning.rollouts.sampler import STOP_EVERY, Sampler, Stop
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.speculation.contract import Speculation

TEXTS_A_SLOT = 4
"""Texts that are thought about before the first of them is answered: as many that a few long ones do not leave the
slots empty, as few that a killed process loses little."""


@dataclass(frozen=True)
class Thinking:
    """How long a model thinks, and how its thoughts begin and end.

    Args:
        budget: tokens of thoughts, at most; `start`, and an `end` that had to be written for the model, do not count.
        waits: how often the model is kept from ending its thoughts by itself: `wait` is written in the end's place, as
            long as the budget lasts.
        wait: see there.
        start: what opens the thoughts, where the template's prompt does not open them itself. "": nothing.
        end: what ends them, and is written where the budget is used up. By default as Qwen3 and DeepSeek-R1 have it;
            for models without a token for it any text, such as "\\n\\nFinal answer:".
    """

    budget: int = 512
    waits: int = 0
    wait: str = "Wait"
    start: str = "<think>\n"
    end: str = "\n</think>\n\n"

    def check(self, name: str) -> None:
        """Raise `UserError` for values that cannot work; `name` is the setting that holds these."""
        for field_name, valid, words in (
            ("budget", self.budget >= 1, "must be at least 1"),
            ("waits", self.waits >= 0, "must be at least 0"),
            ("wait", bool(self.wait) or not self.waits, "must be a text where waits are asked for"),
            ("end", bool(self.end.strip()), "must be a text that ends the thoughts"),
        ):
            if not valid:
                raise UserError(f"{name}.{field_name}={getattr(self, field_name)!r} {words}.")


class Thought(NamedTuple):
    """What was written to a prompt.

    Args:
        tokens: (n,) int64 on the CPU: all that stands behind the prompt, what was written for the model included.
        answer_at: where the answer begins among them.
        num_thoughts: tokens that count for the budget.
        is_finished: whether the model has ended the answer, and not its length.
    """

    tokens: Tensor
    answer_at: int
    num_thoughts: int
    is_finished: bool


@dataclass
class _Text:
    """One text that is being thought about: its prompt, with what opens the thoughts, and they themselves."""

    prompt: Tensor
    opening: list[int]
    key: Key
    waits: int
    thoughts: list[int] = field(default_factory=list)
    closing: list[int] | None = None

    def so_far(self) -> Tensor:
        written = [*self.opening, *self.thoughts, *(self.closing or [])]
        return torch.cat([self.prompt, torch.tensor(written, dtype=torch.int64)])


def sampler_of(
    thinking: Thinking | None,
    tokenizer: Any,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    num_slots: int = 64,
    stop: Stop | None = None,
    speculative: Speculation | None = None,
    kv_cache_dtype: KVCacheDtype = "auto",
) -> "Sampler | ThinkingSampler":
    """What writes one text to each prompt, with thoughts or without; see `ThinkingSampler`."""
    if thinking is None:
        return Sampler(sampling, eos_token_ids, num_slots, stop, speculative=speculative, kv_cache_dtype=kv_cache_dtype)
    return ThinkingSampler(thinking, tokenizer, sampling, eos_token_ids, num_slots, stop, speculative, kv_cache_dtype)


class ThinkingSampler:
    """Writes thoughts and answers with the sampler that writes everything else.

    Args:
        thinking: how long the model thinks.
        tokenizer: its own; what it is told to write is encoded by it, control tokens included.
        sampling: how tokens are drawn; `max_new_tokens` is the answer's.
        eos_token_ids: tokens that end a text.
        num_slots: see `Sampler`.
        stop: ends answers, see `Sampler`; it is given their own tokens only.
        speculative, kv_cache_dtype: see `Sampler`.
    """

    def __init__(
        self,
        thinking: Thinking,
        tokenizer: Any,
        sampling: Sampling,
        eos_token_ids: Sequence[int],
        num_slots: int = 64,
        stop: Stop | None = None,
        speculative: Speculation | None = None,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> None:
        self.thinking, self.tokenizer, self.sampling = thinking, tokenizer, sampling
        self.eos_token_ids, self.num_slots, self.stop = list(eos_token_ids), num_slots, stop
        self.speculative, self.kv_cache_dtype = speculative, kv_cache_dtype
        self._start, self._end, self._wait = map(self._ids, (thinking.start, thinking.end, thinking.wait))
        self._start_token, self._end_token = self._control(thinking.start), self._control(thinking.end)
        self._mark = thinking.end.strip()

    @property
    def most_tokens(self) -> int:
        """That can stand behind a prompt."""
        return len(self._start) + self.thinking.budget + len(self._end) + self.sampling.max_new_tokens

    def stream(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Key]) -> Iterator[tuple[int, Thought]]:
        """What is written to each prompt, as it is done, with the prompt's number.

        Args:
            model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
            prompts: token ids, (n,) int64 each.
            keys: of the random numbers, one a prompt.
        """
        size = TEXTS_A_SLOT * self.num_slots
        for first in range(0, len(prompts), size):
            pairs = zip(prompts[first : first + size], keys[first : first + size], strict=True)
            texts = [_Text(prompt, self._opening(prompt), key, self.thinking.waits) for prompt, key in pairs]
            self._think(model, texts)
            for number, thought in self._answer(model, texts):
                yield first + number, thought

    def _think(self, model: Any, texts: Sequence[_Text]) -> None:
        attempt = 0
        while going_on := [text for text in texts if text.closing is None]:
            attempt += 1
            rooms = [self.thinking.budget - len(text.thoughts) for text in going_on]

            def is_over(number: int, tokens: Tensor, rooms: list[int] = rooms) -> bool:
                return len(tokens) >= rooms[number] or self._has_mark(tokens)

            ends = [*self.eos_token_ids, *([] if self._end_token is None else [self._end_token])]
            sampling = replace(self.sampling, max_new_tokens=max(rooms))
            sampler = Sampler(
                sampling,
                ends,
                self.num_slots,
                is_over,
                speculative=self.speculative,
                kv_cache_dtype=self.kv_cache_dtype,
            )
            # The answer's random numbers are the key's without a further number.
            keys = [(*text.key, attempt) for text in going_on]
            for number, completion in sampler.stream(model, [text.so_far() for text in going_on], keys):
                self._go_on(going_on[number], completion.tokens[: rooms[number]].tolist())

    def _go_on(self, text: _Text, tokens: list[int]) -> None:
        """Take in what was written, and decide whether the thoughts are over."""
        length, mark = self._until_end(tokens)
        is_ended = length < len(tokens)
        room = self.thinking.budget - len(text.thoughts) - length
        if is_ended and text.waits and room > len(self._wait):
            text.waits -= 1
            text.thoughts += [*tokens[:length], *self._wait]
        elif mark:
            text.thoughts += [*tokens[:length], *mark]
            text.closing = []
        else:
            text.thoughts += tokens[:length]
            text.closing = self._end

    def _answer(self, model: Any, texts: Sequence[_Text]) -> Iterator[tuple[int, Thought]]:
        # A model that opens its thoughts anew would escape its budget: its answer is over.
        ends = [*self.eos_token_ids, *([] if self._start_token is None else [self._start_token])]
        sampler = Sampler(
            self.sampling,
            ends,
            self.num_slots,
            self.stop,
            speculative=self.speculative,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        prompts = [text.so_far() for text in texts]
        for number, completion in sampler.stream(model, prompts, [text.key for text in texts]):
            text, answer, is_finished = texts[number], completion.tokens, completion.is_finished
            if is_finished and int(answer[-1]) == self._start_token:
                answer, is_finished = answer[:-1], False
            written = prompts[number][len(text.prompt) :]
            yield number, Thought(torch.cat([written, answer]), len(written), len(text.thoughts), is_finished)

    def _opening(self, prompt: Tensor) -> list[int]:
        start = self.thinking.start.strip()
        shown = self.tokenizer.decode(prompt[-len(self._start) - STOP_EVERY :]).rstrip()
        return [] if start and shown.endswith(start) else self._start

    def _until_end(self, tokens: list[int]) -> tuple[int, list[int]]:
        """How many tokens stand before the thoughts' end, all where there is none, and those that are the end, if the
        model has written it and not the end of its turn.
        """
        ends = {*self.eos_token_ids, self._end_token}
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        if length < len(tokens) and tokens[length] == self._end_token:
            return length, [self._end_token]
        if self._end_token is not None or not self._has_text(tokens[:length]):
            return length, []
        whole = next(n for n in range(1, length + 1) if self._has_text(tokens[:n]))
        before = self._text(tokens[:whole]).split(self._mark)[0]
        length = next(n for n in reversed(range(whole)) if before.startswith(self._text(tokens[:n])))
        return length, tokens[length:whole]

    def _has_mark(self, tokens: Tensor) -> bool:
        if self._end_token is not None:
            return False
        # A token has one byte at least.
        most_at_once = 1 if self.speculative is None else 1 + self.speculative.num_tokens
        window = STOP_EVERY + most_at_once + len(self._mark.encode()) + 4
        return self._has_text(tokens[-window:].tolist()) and self._has_text(tokens.tolist())

    def _has_text(self, tokens: list[int]) -> bool:
        return self._mark in self._text(tokens)

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _control(self, text: str) -> int | None:
        """The token that a text is, or that stands in it with blanks around, where the vocabulary has one for it."""
        ids = self._ids(text.strip())
        return ids[0] if len(ids) == 1 and ids[0] in self.tokenizer.added_tokens_decoder else None
