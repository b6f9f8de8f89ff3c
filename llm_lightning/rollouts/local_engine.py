"""Writes texts with a model in this process: what `SyntheticDataModule` asks an engine for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.completions import bounded_groups, pack_completions, states_and_logprobs
from llm_lightning.models.generation import end_tokens, generation_settings
from llm_lightning.models.loading.content import files_key
from llm_lightning.models.loading.new_tokens import read_tokenizer
from llm_lightning.models.untrusted_text import UntrustedText
from llm_lightning.rollouts.cache import KVCacheDtype
from llm_lightning.rollouts.contract import Completion
from llm_lightning.rollouts.sampler import Sampler
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.speculation.contract import Speculation
from llm_lightning.rollouts.stopping import StopAt
from llm_lightning.rollouts.thinking import Thinking, ThinkingSampler, Thought, sampler_of

PACKED_TOKENS = 8192
"""Of one forward pass over finished texts, but for a single longer one."""


class WrittenText(NamedTuple):
    """What was written: without special tokens, its length, and whether the model ended it by itself."""

    text: str
    num_tokens: int
    is_finished: bool


class TextRequest(Protocol):
    """What is looked at in a request for a text."""

    @property
    def messages(self) -> Sequence[dict[str, Any]]:
        """The conversation so far; it ends with the user."""
        ...

    @property
    def seed(self) -> int:
        """Names the random numbers."""
        ...

    @property
    def temperature(self) -> float:
        """0 takes the likeliest token."""
        ...

    @property
    def top_p(self) -> float:
        """Share of the probability that tokens are drawn from."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Length of the text, at most."""
        ...


Request = TypeVar("Request", bound=TextRequest)


class LocalEngine:
    """A model folder, a .gguf file or a hub id, written from by the sampler that PPO uses: many texts at the same time,
    without padding, and a text that is over gives its place to the next one.

    What a request's messages spell of control tokens is plain text to it.

    The model is read when it is needed first. On several GPUs each process takes the one of its local rank.

    Args:
        path: folder, .gguf file or hub id of a model with a chat template; an adapter is merged.
        num_slots: texts that are written at the same time.
        dtype: of the weights; by default bfloat16 on a GPU, float32 on a CPU.
        device: by default this process's GPU, where there is one.
        field: the setting that holds `path`, for messages.
        thinking: how long the model thinks before it answers; None: as it likes.
        stop_at: a regular expression; a text in which it finds something is over.
        speculative: drafts, so that a forward pass writes several tokens where they are right: `PromptLookup`, or
            `DraftModel`. It changes no text but by rounding.
        kv_cache_dtype: of keys and values, see `Sampler`.
    """

    def __init__(
        self,
        path: str,
        num_slots: int = 64,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        field: str = "engine.path",
        thinking: Thinking | None = None,
        stop_at: str | None = None,
        speculative: Speculation | None = None,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> None:
        if num_slots < 1:
            raise UserError(f"engine.num_slots={num_slots} must be at least 1.")
        if thinking is not None:
            thinking.check("thinking")
        self.thinking, self.stop_at = thinking, stop_at
        self.path, self.field = path, field
        self.num_slots, self.speculative, self.kv_cache_dtype = num_slots, speculative, kv_cache_dtype
        self.device = torch.device(device or own_device())
        self.dtype = dtype or ("bfloat16" if self.device.type == "cuda" else "float32")

    @cached_property
    def model(self) -> str:
        """A hash of the files that are read, and the dtype; of a hub id its commit. And what else decides texts."""
        decides = [f"-{each}" for each in (self.thinking, self.stop_at) if each is not None]
        decides += [] if self.kv_cache_dtype == "auto" else [f"-kv-{self.kv_cache_dtype}"]
        return f"{files_key(self.path)}-{self.dtype}{''.join(decides)}"

    def check(self) -> None:
        """Read config and tokenizer; raises `UserError` where that fails, or where there is no chat template."""
        Backbone(path=self.path).read_config()
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.field}={self.path!r}: its tokenizer has no chat template, so it cannot be asked.")
        _ = self._untrusted, self._stop
        if self.speculative is not None:
            self.speculative.check(self.tokenizer, "speculative")

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        try:
            return read_tokenizer(self.path)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.field}={self.path!r} has no tokenizer that can be read: {error}") from error

    @cached_property
    def _untrusted(self) -> UntrustedText:
        try:
            return UntrustedText(self.tokenizer)
        except TypeError as error:
            raise UserError(f"{self.field}={self.path!r}: {error}.") from error

    @cached_property
    def _stop(self) -> StopAt | None:
        most_at_once = 1 if self.speculative is None else 1 + self.speculative.num_tokens
        return None if self.stop_at is None else StopAt(self.stop_at, self.tokenizer, most_at_once)

    @cached_property
    def network(self) -> Any:
        """Read at the first use."""
        with self.device:
            return Backbone(path=self.path, dtype=self.dtype).build(self.tokenizer).eval().requires_grad_(False)

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a text: the tokenizer's, its template's, and those of the generation config."""
        return end_tokens(generation_settings(self.network.generation_config, self.tokenizer))

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, WrittenText]]:
        """The texts as they are done, each with its request's place.

        Args:
            requests: one whose prompt leaves the context no room for the text gets an empty one that is not finished.
        """
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            sampling = Sampling(request.max_new_tokens, request.temperature, top_p=request.top_p)
            groups.setdefault(sampling, []).append(place)
        for sampling, places in groups.items():
            yield from self._write([(place, requests[place]) for place in places], sampling)

    def _write(
        self, requests: Sequence[tuple[int, TextRequest]], sampling: Sampling
    ) -> Iterator[tuple[int, WrittenText]]:
        sampler = self._sampler(sampling)
        longest = self.context_length
        prompts: list[tuple[Tensor, int, TextRequest]] = []
        for place, request in requests:
            ids = self._ids(list(request.messages), reply=True)
            if len(ids) + sampler.most_tokens > longest:
                yield place, WrittenText("", 0, False)
            else:
                prompts.append((ids, place, request))
        # Texts of similar length stand side by side: the slots' keys are as wide as the longest.
        prompts.sort(key=lambda one: len(one[0]))
        stream: Iterator[tuple[int, Completion | Thought]] = sampler.stream(
            self.network, [one[0] for one in prompts], [(one[2].seed,) for one in prompts]
        )
        for number, completion in stream:
            yield prompts[number][1], self._text(completion)

    def _text(self, written: Completion | Thought) -> WrittenText:
        """Without special tokens, but for those around thoughts."""
        answer_at = written.answer_at if isinstance(written, Thought) else 0
        answer, is_finished = written.tokens[answer_at:], written.is_finished
        if self._stop is not None and (stopped := self._stop.cut(answer)) is not None:
            answer, is_finished = stopped, True
        text = self.tokenizer.decode(written.tokens[:answer_at])
        text += self.tokenizer.decode(answer, skip_special_tokens=True)
        return WrittenText(text, answer_at + len(answer), is_finished)

    def _sampler(self, sampling: Sampling) -> Sampler | ThinkingSampler:
        stop = None if self._stop is None else self._stop.is_over
        return sampler_of(
            self.thinking,
            self.tokenizer,
            sampling,
            self.eos_token_ids,
            self.num_slots,
            stop,
            self.speculative,
            self.kv_cache_dtype,
        )

    def reply(
        self, messages: Sequence[dict[str, Any]], sampling: Sampling, key: Key, show: Callable[[Tensor], object]
    ) -> WrittenText:
        """One text, shown as it is written; Ctrl-C ends it, and what was written by then is returned.

        Args:
            messages: the conversation so far; it ends with the user.
            sampling: how tokens are drawn.
            key: of their random numbers.
            show: called with all tokens so far, after each one.
        """
        so_far = torch.zeros(0, dtype=torch.int64)

        def shown(_: int, tokens: Tensor) -> bool:
            nonlocal so_far
            so_far = tokens
            show(tokens)
            return False

        sampler = Sampler(
            sampling, self.eos_token_ids, 1, shown, 1, speculative=self.speculative, kv_cache_dtype=self.kv_cache_dtype
        )
        is_finished = False
        with suppress(KeyboardInterrupt):
            ((_, completion),) = sampler.stream(self.network, [self._ids(list(messages), reply=True)], [key])
            so_far, is_finished = completion.tokens, completion.is_finished
            show(so_far)
        return WrittenText(self.tokenizer.decode(so_far, skip_special_tokens=True), len(so_far), is_finished)

    def room(self, messages: Sequence[dict[str, Any]]) -> int:
        """Tokens that the context has left for a reply."""
        return self.context_length - len(self._ids(list(messages), reply=True))

    @property
    def context_length(self) -> int:
        """Tokens that prompt and text may have together."""
        return getattr(self.network.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31

    @torch.no_grad()
    def perplexities(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
        """Of each conversation's last message, given those before it; the logits of all are never there at once."""
        pairs = [self._prompt_and_answer(list(messages)) for messages in conversations]
        values: list[float] = []
        for group in bounded_groups([len(prompt) + len(completion) for prompt, completion in pairs], PACKED_TOKENS):
            prompts, completions = zip(*(pairs[number] for number in group), strict=True)
            packed = pack_completions(prompts, completions, self.device)
            logprobs = states_and_logprobs(self.network, packed, 1.0, with_entropies=False)[1].logprobs
            means = [-part.mean() for part in logprobs.split([len(completion) for completion in completions])]
            values += torch.stack(means).exp().tolist()
        return values

    def settings(self) -> dict[str, Any]:
        """What is written into reports."""
        shown = {"path": self.path, "model": self.model, "num_slots": self.num_slots, "device": str(self.device)}
        return {"engine": type(self).__name__} | shown

    def release(self) -> None:
        """Forget the network; it is read again when it is needed."""
        self.__dict__.pop("network", None)
        if self.speculative is not None:
            self.speculative.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ids(self, messages: list[dict[str, Any]], reply: bool) -> Tensor:
        return torch.tensor(self._untrusted.conversation(messages, reply=reply), dtype=torch.int64)

    def _prompt_and_answer(self, messages: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        prompt, whole = self._ids(messages[:-1], reply=True), self._ids(messages, reply=False)
        if len(whole) > len(prompt) and torch.equal(whole[: len(prompt)], prompt):
            return prompt, whole[len(prompt) :]
        # A template that writes a finished completion otherwise than it prompts for one.
        text = self._untrusted.text(messages[-1]["content"])
        return prompt, torch.tensor([*text, self.eos_token_ids[0]])


def own_device() -> str:
    """The GPU of this process's local rank, as SLURM or torchrun number it, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return f"cuda:{local_rank % torch.cuda.device_count()}"
