"""A language model behind Triton's Python backend: a prompt in, text out. `../config.pbtxt` says what a request holds.

Requests that Triton hands over together are written as one batch. Each answer is the same in any batch, up to rounding:
the noise that it is drawn with is its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from prompts import Prompt, Prompts, RequestError, refused, value
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, StoppingCriteria

MAX_TOKENS = 16
"""Of an answer whose length is not asked for."""


@dataclass(frozen=True)
class Asked:
    """One request: at most `max_tokens` new ones, drawn at a `temperature` (0: the most probable ones) by a `seed`, and
    the logits of the last `num_logits` tokens of the prompt.
    """

    prompt: Prompt
    max_tokens: int
    temperature: float
    seed: int
    num_logits: int


class TritonPythonModel:
    """What the backend loads and calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load network and tokenizer of this folder, onto the GPU that Triton names or the CPU."""
        folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device("cuda", int(args["model_instance_device_id"])) if on_gpu else torch.device("cpu")
        network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.network = network.to(self.device).eval()
        ends = network.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        # A new one: nothing but the request decides how tokens are chosen.
        network.generation_config = GenerationConfig(eos_token_id=self.ends or None, pad_token_id=0, do_sample=False)
        self.most_tokens = getattr(network.config, "max_position_embeddings", None) or 2**30
        self.prompts = Prompts(folder, self.most_tokens)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        responses: list[Any] = [None] * len(requests)
        asked: dict[int, Asked] = {}
        for number, request in enumerate(requests):
            try:
                asked[number] = self._read(request)
            except RequestError as error:
                responses[number] = refused(error)
        rows = {number: each for number, each in asked.items() if each.max_tokens}
        written = dict(zip(rows, self._write(list(rows.values())), strict=True))
        for number, each in asked.items():
            responses[number] = self._response(each, written.get(number, []))
        return responses

    def _read(self, request: Any) -> Asked:
        asked = Asked(
            self.prompts.read(request),
            int(value(request, "max_tokens", MAX_TOKENS)),
            float(value(request, "temperature", 0.0)),
            int(value(request, "seed", 0)),
            int(value(request, "num_logits", 0)),
        )
        for name in ("max_tokens", "temperature", "num_logits"):
            if not getattr(asked, name) >= 0:
                raise RequestError(f"{name} {getattr(asked, name)} must be at least 0.")
        tokens = len(asked.prompt.ids)
        if tokens + asked.max_tokens > self.most_tokens:
            raise RequestError(
                f"{tokens} tokens of the prompt and max_tokens {asked.max_tokens} pass the {self.most_tokens} of the "
                "model."
            )
        return asked

    @torch.inference_mode()
    def _write(self, asked: list[Asked]) -> list[list[int]]:
        """The new tokens of each, as one batch whose prompts end at the same place."""
        if not asked:
            return []
        width = max(len(each.prompt.ids) for each in asked)
        ids = torch.zeros(len(asked), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, each in enumerate(asked):
            ids[row, width - len(each.prompt.ids) :] = torch.tensor(each.prompt.ids)
            mask[row, width - len(each.prompt.ids) :] = 1
        limits = torch.tensor([each.max_tokens for each in asked])
        tokens = self.network.generate(
            ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=int(limits.max()),
            logits_processor=[Noise(asked)], stopping_criteria=[Lengths(width + limits.to(self.device))],
        )  # fmt: skip
        return [self._cut(row[:most]) for row, most in zip(tokens[:, width:].tolist(), limits.tolist(), strict=True)]

    def _cut(self, tokens: list[int]) -> list[int]:
        """Up to the token that ends the text, and with it."""
        end = next((n for n, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]

    def _response(self, asked: Asked, tokens: list[int]) -> Any:
        text = self.prompts.tokenizer.decode(tokens, skip_special_tokens=True)
        outputs = {
            "text_output": np.array([[text.encode()]], dtype=object),
            "output_ids": np.array([tokens], dtype=np.int64),
            "prompt": np.array([[asked.prompt.text.encode()]], dtype=object),
            "prompt_ids": np.array([asked.prompt.ids], dtype=np.int64),
        }
        if asked.num_logits:
            outputs["logits"] = self._logits(asked)[None]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    @torch.inference_mode()
    def _logits(self, asked: Asked) -> np.ndarray:
        """(`num_logits` or fewer, V) float32."""
        ids = torch.tensor([asked.prompt.ids], device=self.device)
        return np.asarray(self.network(ids, logits_to_keep=asked.num_logits).logits[0].float().cpu().numpy())


class Noise(LogitsProcessor):
    """Makes the most probable token of a row a draw at its temperature: Gumbel noise on the scaled logits, of a
    generator of the row's own.
    """

    def __init__(self, asked: list[Asked]) -> None:
        self.asked = asked
        self.generators = [torch.Generator().manual_seed(each.seed) for each in asked]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) of the next token."""
        for row, (each, generator) in enumerate(zip(self.asked, self.generators, strict=True)):
            if each.temperature:
                noise = -torch.empty(scores.shape[1]).exponential_(generator=generator).log()
                scores[row] = scores[row] / each.temperature + noise.to(scores)
        return scores


class Lengths(StoppingCriteria):
    """Ends each row at its own length, (B,)."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Which rows are at their ends."""
        return input_ids.shape[1] >= self.lengths
