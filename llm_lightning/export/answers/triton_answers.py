"""Answers of a Triton model repository, over HTTP and gRPC; the server runs as long as it is asked."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from measuring import answer, read_questions
from triton_server import Server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NO_TEMPLATE = "The model has no chat template"


class Connection:
    """One model of a server, by one of its protocols."""

    def __init__(self, module: Any, url: str, model: str) -> None:
        self.module, self.model = module, model
        timeouts = {"network_timeout": 600.0} if module is tritonclient.http else {}
        self.client = module.InferenceServerClient(url, **timeouts)

    def ask(self, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of one request with one prompt, without the axis of the batch."""
        sent = []
        for name, array in inputs.items():
            sent.append(self.module.InferInput(name, (1, *array.shape), np_to_triton_dtype(array.dtype)))
            sent[-1].set_data_from_numpy(array[None])
        wanted = [self.module.InferRequestedOutput(name) for name in outputs]
        reply = self.client.infer(self.model, sent, outputs=wanted)
        return [reply.as_numpy(name)[0] for name in outputs]


class Model:
    """Tokenizer and template, as the server has them."""

    def __init__(self, server: Server, model: str, num_positions: int) -> None:
        self.http = Connection(tritonclient.http, server.http, model)
        self.grpc = Connection(tritonclient.grpc, server.grpc, model)
        self.num_positions = num_positions
        self.nothing: dict[str, np.ndarray] = {}
        """Inputs by which it is asked for no answer."""

    def ids(self, text: str) -> list[int]:
        """Of a text."""
        (ids,) = self.http.ask(["prompt_ids"], text_input=_texts(text), **self.nothing)
        return [int(number) for number in ids]

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """By the tokenizer's own template; a conversation that it refuses is its refusal."""
        try:
            (prompt,) = self.http.ask(
                ["prompt"], messages=_texts(json.dumps(messages)), add_generation_prompt=np.array([begin_reply]),
                **self.nothing,
            )  # fmt: skip
        except InferenceServerException as error:
            said = str(error.message())
            return None if said.startswith(NO_TEMPLATE) else said
        return str(prompt[0].decode())


class Writer(Model):
    """A language model."""

    def __init__(self, server: Server, model: str, num_positions: int) -> None:
        super().__init__(server, model, num_positions)
        self.nothing = {"max_tokens": _number(0)}

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V)."""
        (logits,) = self.grpc.ask(
            ["logits"], input_ids=np.array(ids), max_tokens=_number(0), num_logits=_number(len(ids))
        )
        return np.asarray(logits)

    def write(self, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        """Greedily, over both protocols; raises where they differ. The seconds are gRPC's."""
        (by_http, *_), (tokens, prompt, rest) = (self._written(by, ids, num_new) for by in (self.http, self.grpc))
        if by_http != tokens:
            raise RuntimeError(f"over HTTP it wrote {by_http}, over gRPC {tokens}")
        return tokens, prompt, rest

    def _written(self, by: Connection, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        start = time.perf_counter()
        tokens = self._asked(by, ids, 1)
        prompt = time.perf_counter() - start
        while len(tokens) < num_new:  # it stops where a text ends
            tokens += self._asked(by, ids + tokens, num_new - len(tokens))
        return tokens, prompt, time.perf_counter() - start - prompt

    def _asked(self, by: Connection, ids: list[int], num_new: int) -> list[int]:
        (found,) = by.ask(["output_ids"], input_ids=np.array(ids), max_tokens=_number(num_new))
        return [int(number) for number in found]


class Rewards(Model):
    """A reward model."""

    def score(self, ids: list[int]) -> float:
        """Over both protocols; raises where they differ."""
        by_http, by_grpc = (by.ask(["reward"], input_ids=np.array(ids))[0][0] for by in (self.http, self.grpc))
        if by_http != by_grpc:
            raise RuntimeError(f"over HTTP its reward is {by_http}, over gRPC {by_grpc}")
        return float(by_grpc)


def _texts(text: str) -> np.ndarray:
    return np.array([text.encode()], dtype=object)


def _number(number: int) -> np.ndarray:
    return np.array([number], dtype=np.int32)


if __name__ == "__main__":
    questions, folder = read_questions()
    with Server(Path(questions["repository"])) as server:
        kind = Rewards if questions["is_reward_model"] else Writer
        answer(kind(server, questions["model"], questions["num_positions"]), questions, folder)
