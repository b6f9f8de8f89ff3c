"""Answers to prompts by the rollout engine, each as its own request wants it drawn and ended."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.sharding import is_gathered_to_run
from llm_lightning.rollouts.adaptation import Adaptation
from llm_lightning.rollouts.contract import Completion
from llm_lightning.rollouts.sampler import STOP_EVERY, Sampler
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.thinking import Thinking, Thought, sampler_of

IGNORED = {"do_sample", "until", "temperature", "top_k", "top_p", "max_gen_toks", "num_beams", "use_cache"}
"""Of lm-eval's `gen_kwargs`, those that are heard, and those that change no greedy or sampled answer."""

SLACK = 4
"""Tokens more than a stop string can have that are read for it: the first of a window may lose its space."""


@dataclass(frozen=True)
class Question:
    """A prompt and how its answer is drawn.

    Args:
        ids: of the prompt.
        sampling: how tokens are drawn.
        stops: texts that end the answer and do not belong to it.
        key: names the question and all that decides its answer.
        seed: the random numbers of its answer.
    """

    ids: Sequence[int]
    sampling: Sampling
    stops: tuple[str, ...]
    key: str = ""
    seed: Key = (0,)

    @classmethod
    def of(cls, ids: Sequence[int], max_new_tokens: int, options: Mapping[str, Any]) -> "Question":
        """From options as `normalize_gen_kwargs` leaves them.

        Raises:
            UserError: one of them asks for what the rollout engine does not do.
        """
        for name, value in options.items():
            if name not in IGNORED or (name == "num_beams" and value != 1):
                raise UserError(f"generation_kwargs.{name}={value!r}: answers are greedy or sampled; leave it out.")
        temperature = float(options.get("temperature") or 0.0)
        if options.get("do_sample") and not temperature:
            temperature = 1.0
        sampling = Sampling(
            max_new_tokens,
            temperature if options.get("do_sample") else 0.0,
            top_k=int(options.get("top_k") or 0) if options.get("do_sample") else 0,
            top_p=float(options.get("top_p") or 1.0) if options.get("do_sample") else 1.0,
        )
        sampling.check("generation_kwargs")
        stops = options.get("until") or []
        return cls(ids, sampling, tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop))

    def named(self, key: str, seed: int, repeat: int) -> "Question":
        """With a name, and random numbers that depend on the prompt, the seed and the repeat alone."""
        digest = hashlib.blake2b(str(list(self.ids)).encode(), digest_size=8).digest()
        return replace(self, key=key, seed=(seed, int.from_bytes(digest, "big"), repeat))


class Strategy(Protocol):
    """Many samples of an answer and a choice among them, thoughts before it, or both; learning from texts that are
    read.
    """

    @property
    def num_samples(self) -> int:
        """Texts that are written to each prompt."""
        ...

    @property
    def thinking(self) -> Thinking | None:
        """How long the model thinks before it answers."""
        ...

    @property
    def adaptation(self) -> Adaptation | None:
        """How the network learns from a text whose likelihood is asked for."""
        ...

    def drawn(self, sampling: Sampling) -> Sampling:
        """How the texts are drawn, given how the task draws its own."""
        ...

    def choose(
        self, prompts: Sequence[Any], texts: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """For each prompt the place of the text that is the answer.

        Args:
            prompts: a text each, or the messages of a conversation.
            texts: the samples of each, thoughts left out.
            docs: what the task has of each item.
        """
        ...

    def as_settings(self) -> dict[str, Any]:
        """What is written into results."""
        ...


class Writer:
    """Writes answers with a network.

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
        tokenizer: its own.
        eos_token_ids: tokens that end an answer.
        num_slots: answers that are written at the same time.
        ranks: that share the questions.
        thinking: how long the network thinks before it answers, where its weights are whole.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        eos_token_ids: Sequence[int],
        num_slots: int,
        ranks: EvaluationRanks,
        thinking: Thinking | None = None,
    ) -> None:
        self.model, self.tokenizer, self.ranks, self.thinking = model, tokenizer, ranks, thinking
        self.eos_token_ids, self.num_slots = eos_token_ids, num_slots

    def write(self, questions: Sequence[Question]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each question's number and its answer, as they are done: `text`, `num_tokens`, `max_new_tokens`, and whether
        it is `truncated`, that is, neither the model nor a stop string has ended it. Thoughts count as tokens, but are
        not in the text.
        """
        groups: dict[tuple[Sampling, tuple[str, ...]], list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault((question.sampling, question.stops), []).append(number)
        is_sharded = is_gathered_to_run(base_model(self.model))
        if is_sharded:  # every rank takes part in fetching the weights, once a group
            groups = {group: groups.get(group, []) for each in self.ranks.gather(list(groups)) for group in each}
        for (sampling, stops), numbers in groups.items():
            # Answers to prompts of similar length stand side by side: the slots' keys are as wide as the longest.
            numbers.sort(key=lambda number: len(questions[number].ids))
            prompts = [torch.tensor(questions[number].ids, dtype=torch.int64) for number in numbers]
            keys = [questions[number].seed for number in numbers]
            ends = Stops(self.tokenizer, stops)
            sampler = sampler_of(
                self.thinking,
                self.tokenizer,
                sampling,
                self.eos_token_ids,
                self.num_slots,
                ends.has_one if stops else None,
            )
            written: Iterator[tuple[int, Completion | Thought]]
            if is_sharded and isinstance(sampler, Sampler):
                written = enumerate(sampler.sample(self.model, prompts, [[key] for key in keys]))
            else:
                written = sampler.stream(self.model, prompts, keys)
            for place, completion in written:
                yield numbers[place], {**ends.answer(completion), "max_new_tokens": sampling.max_new_tokens}


class Stops:
    """The texts that end an answer.

    Args:
        tokenizer: of the answers.
        stops: the texts.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        # A token has one byte at least.
        self.window = STOP_EVERY + SLACK + max((len(stop.encode()) for stop in stops), default=0)

    def has_one(self, _: int, tokens: Tensor) -> bool:
        """Whether a stop string stands among the newest tokens, and so in the answer."""
        newest = self._text(tokens[-self.window :])
        if not any(stop in newest for stop in self.stops):
            return False
        whole = self._text(tokens)
        return any(stop in whole for stop in self.stops)

    def answer(self, completion: Completion | Thought) -> dict[str, Any]:
        """The answer up to its first stop string."""
        answer_at = completion.answer_at if isinstance(completion, Thought) else 0
        text = self._text(completion.tokens[answer_at:])
        is_stopped = any(stop in text for stop in self.stops)
        for stop in self.stops:
            text = text.split(stop)[0]
        truncated = not completion.is_finished and not is_stopped
        return {"text": text, "num_tokens": len(completion.tokens), "truncated": truncated}

    def _text(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
