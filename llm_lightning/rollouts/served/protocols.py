"""What servers are asked, and what their replies become."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_lightning.rollouts.contract import Completion
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.served.weights import write_adapter, write_merged

ROUNDING = 1e-2
"""What it may make of a log-probability of 0."""


class Endpoint(Protocol):
    """Makes calls, several at a time, and again where they fail: `datamodules.OpenAIEngine`, or a class of yours."""

    def call(self, path: Any, bodies: Any, read: Any) -> Iterator[tuple[int, Any]]:
        """The place of each of the bodies that are sent to a path, and what `read` makes of the reply, as they come.

        `read` raises `ValueError` for a reply that cannot be used. A call that was given up has no result.
        """
        ...

    def load_adapter(self, name: Any, folder: Any) -> Any:
        """Let the server read an adapter, and answer by this name."""
        ...

    def unload_adapter(self, name: Any) -> Any:
        """Let the server forget it."""
        ...

    def check(self) -> Any:
        """Find a user's mistakes; nothing is called."""
        ...

    def settings(self) -> dict[str, Any]:
        """What is shown of it, without secrets."""
        ...


@dataclass(frozen=True)
class ServerProtocol(ABC):
    """A server's way to be asked.

    Args:
        sampling: how tokens are drawn.
        eos_token_ids: tokens that end a completion.
        tokenizer: the policy's.
    """

    sampling: Sampling
    eos_token_ids: Sequence[int]
    tokenizer: Any

    @abstractmethod
    def write(self, model: Any, folder: Path) -> None:
        """Write the weights of a `PeftModel` to a folder."""

    @abstractmethod
    def publish(self, endpoint: Endpoint, name: str, folder: Path) -> None:
        """Let the server have the weights in a folder."""

    @abstractmethod
    def withdraw(self, endpoint: Endpoint, name: str) -> None:
        """Let it forget those that it had before."""

    @abstractmethod
    def body(self, name: str, folder: Path, prompt: Tensor, key: Key) -> dict[str, Any]:
        """The call for one completion to a prompt (n,), by the weights of this name."""

    @abstractmethod
    def read(self, response: Any, vocab_size: int) -> Completion:
        """The completion of a reply; raises `ValueError` for what can be none, such as tokens beyond the vocabulary."""


class VLLM(ServerProtocol):
    """As vLLM documents its server: adapters are loaded by name, prompts and completions are token ids."""

    def write(self, model: Any, folder: Path) -> None:
        """The adapter."""
        write_adapter(model, folder)

    def publish(self, endpoint: Endpoint, name: str, folder: Path) -> None:
        """See `ServerProtocol`."""
        endpoint.load_adapter(name, str(folder))

    def withdraw(self, endpoint: Endpoint, name: str) -> None:
        """See `ServerProtocol`."""
        endpoint.unload_adapter(name)

    def body(self, name: str, folder: Path, prompt: Tensor, key: Key) -> dict[str, Any]:
        """See `ServerProtocol`."""
        sampling = self.sampling
        return {
            "model": name, "prompt": prompt.tolist(), "max_tokens": sampling.max_new_tokens, "seed": seed_of(key),
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1,
            "stop_token_ids": list(self.eos_token_ids), "logprobs": 1, "return_token_ids": True,
        }  # fmt: skip

    def read(self, response: Any, vocab_size: int) -> Completion:
        """See `ServerProtocol`."""
        choice = choice_of(response)
        tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
            raise ValueError("a completion without token_ids and as many logprobs.token_logprobs")
        if not 1 <= len(tokens) <= self.sampling.max_new_tokens:
            raise ValueError(f"a completion of {len(tokens)} tokens")
        if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
            raise ValueError("a completion with tokens that the policy does not have")
        if not all(isinstance(value, int | float) and -math.inf < value < ROUNDING for value in logprobs):
            raise ValueError("a completion with log-probabilities that can be none")
        return Completion(torch.tensor(tokens), torch.tensor(logprobs).float(), tokens[-1] in self.eos_token_ids)


class TransformersServe(ServerProtocol):
    """As `transformers serve` takes it: a folder is a model's name, prompts and completions are texts.

    It reads no folder of an adapter alone, so that the whole network is written at each step: for small ones.

    Such a server tells neither tokens nor log-probabilities. A text is encoded again, which may give other tokens than
    were drawn, and how likely these were is not known.
    """

    def write(self, model: Any, folder: Path) -> None:
        """The network with the adapter merged into it."""
        write_merged(model, self.tokenizer, folder)

    def publish(self, endpoint: Endpoint, name: str, folder: Path) -> None:
        """The server reads the folder with the first call that names it."""

    def withdraw(self, endpoint: Endpoint, name: str) -> None:
        """The server forgets what has not been asked for a while."""

    def body(self, name: str, folder: Path, prompt: Tensor, key: Key) -> dict[str, Any]:
        """See `ServerProtocol`."""
        sampling = self.sampling
        # Its own fields leave whether to sample at all to the model.
        settings = {
            "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
            "max_new_tokens": sampling.max_new_tokens, "eos_token_id": list(self.eos_token_ids),
            "pad_token_id": self.eos_token_ids[0],
        }  # fmt: skip
        config = json.dumps(settings)
        return {"model": str(folder), "prompt": self._text(prompt), "seed": seed_of(key), "generation_config": config}

    def read(self, response: Any, vocab_size: int) -> Completion:
        """See `ServerProtocol`."""
        choice = choice_of(response)
        text = choice.get("text")
        if not isinstance(text, str):
            raise ValueError("a completion without text")
        tokens = self.tokenizer.encode(text, add_special_tokens=False)[: self.sampling.max_new_tokens]
        is_finished = choice.get("finish_reason") == "stop" and len(tokens) < self.sampling.max_new_tokens
        if is_finished:
            tokens.append(self.eos_token_ids[0])
        tokens = tokens or [self.eos_token_ids[0]]  # what was written has no text
        return Completion(torch.tensor(tokens), torch.full((len(tokens),), math.nan), is_finished)

    def _text(self, prompt: Tensor) -> str:
        """That the server encodes to the prompt, where there is one: it may put special tokens in front itself."""
        ids = prompt.tolist()
        for begin in range(min(2, len(ids))):
            text = self.tokenizer.decode(ids[begin:])
            if self.tokenizer(text).input_ids == ids:
                return text
        return self.tokenizer.decode(ids)


def choice_of(response: Any) -> dict[str, Any]:
    """The only completion of a reply; raises `ValueError` where there is none."""
    try:
        choice = response["choices"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a reply that is no completion ({type(error).__name__}: {error})") from error
    if not isinstance(choice, dict):
        raise ValueError("a reply that is no completion")
    return choice


def seed_of(key: Key) -> int:
    """From 0 to 2^31 - 1, which every server takes."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest()) >> 1
