"""A server on localhost that loads adapters as vLLM documents it: real HTTP around a real network, without vLLM."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.loading.new_tokens import read_tokenizer
from llm_lightning.rollouts import Sampler, Sampling
from tests.chat_server import ChatServer, Fault, send_json


class AdapterServer:
    """Answers `/load_lora_adapter`, `/unload_lora_adapter` and `/completions` by token ids.

    Attributes:
        phases: what was asked, in order: ("load" or "unload", name), and ("complete", name) for runs of completions.
        loaded: the names that it knows.
        fault: as of `ChatServer`; comes before its own refusals.
        shift: what is done to the weights of each adapter that it loads, so that it is not quite the policy.
    """

    def __init__(self, base: Path) -> None:
        self.server = ChatServer()
        self.server.answer, self.server.fault = self._answer, self._fault
        self.phases: list[tuple[str, str]] = []
        self.loaded: dict[str, Any] = {}
        self.fault: Callable[[dict[str, Any], int], Fault | None] = lambda body, attempt: None
        self.shift: Callable[[Any], None] = lambda model: None
        self._network, self._lock = Backbone(path=str(base)).build(read_tokenizer(str(base))), threading.Lock()

    @property
    def url(self) -> str:
        return self.server.url

    @contextmanager
    def running(self) -> Iterator["AdapterServer"]:
        with self.server.running():
            yield self

    def _fault(self, body: dict[str, Any], attempt: int) -> Fault | None:
        if (given := self.fault(body, attempt)) is not None:
            return given
        name, is_load = body.get("lora_name", body.get("model")), "lora_path" in body
        if is_load and name in self.loaded:
            return refused(400, f"The lora adapter '{name}' has already been loaded.")
        if not is_load and name not in self.loaded:
            return refused(404, f"The lora adapter '{name}' cannot be found.")
        return None

    def _answer(self, body: dict[str, Any]) -> bytes:
        with self._lock:
            if "lora_path" in body:
                adapter = PeftModel.from_pretrained(deepcopy(self._network), body["lora_path"]).eval()
                self.shift(adapter)
                self.loaded[body["lora_name"]] = adapter
                return self._done("load", body["lora_name"])
            if "lora_name" in body:
                del self.loaded[body["lora_name"]]
                return self._done("unload", body["lora_name"])
            return self._complete(body)

    def _done(self, phase: str, name: str) -> bytes:
        self.phases.append((phase, name))
        return f"Success: {phase} {name}".encode()

    def _complete(self, body: dict[str, Any]) -> bytes:
        if self.phases[-1] != (phase := ("complete", body["model"])):
            self.phases.append(phase)
        sampling = Sampling(body["max_tokens"], body["temperature"], max(0, body["top_k"]), body["top_p"])
        sampler = Sampler(sampling, body["stop_token_ids"])
        (one,) = sampler.sample(self.loaded[body["model"]], [torch.tensor(body["prompt"])], [[(body["seed"],)]])
        choice = {
            "index": 0, "text": "", "finish_reason": "stop" if one.is_finished else "length",
            "token_ids": one.tokens.tolist(), "logprobs": {"token_logprobs": one.logprobs.tolist()},
        }  # fmt: skip
        return json.dumps({"choices": [choice]}).encode()


def refused(code: int, message: str) -> Fault:
    return lambda handler: send_json(handler, json.dumps({"error": {"message": message}}).encode(), code)
