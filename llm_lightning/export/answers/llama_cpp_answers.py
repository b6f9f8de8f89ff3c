"""Answers of a .gguf file, as llama.cpp's own server gives them; it runs within this process, on localhost."""

import json
import os
import urllib.request
from typing import Any

import numpy as np
import xllamacpp
from measuring import answer, read_questions

LEAST = -100.0
"""Log-probability of what the server leaves out."""


class Writer:
    """The server, with one slot."""

    def __init__(self, path: str, num_positions: int, has_template: bool) -> None:
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = self.num_positions = num_positions
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup = False
        self.has_template = has_template
        self.server = xllamacpp.Server(params)
        self.vocab_size = self._ask("/v1/models")["data"][0]["meta"]["n_vocab"]
        self.letter = self._ask("/tokenize", content="e", add_special=False)["tokens"][0]

    def ids(self, text: str) -> list[int]:
        """Of a text."""
        return list(self._ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """By its own engine for templates. Of a file without one it takes one of its own, so that it has to be told."""
        if not self.has_template:
            return None
        return str(self._ask("/apply-template", messages=messages, add_generation_prompt=begin_reply)["prompt"])

    def next_log_probabilities(self, ids: list[int]) -> np.ndarray:
        """(V,), of the token after a text."""
        # It gives none with the end of a text, nor with half a character: so it has to write a letter. What it gives is
        # of the logits before that.
        done = self._complete(ids, 1, n_probs=self.vocab_size, logit_bias=[[self.letter, 1000.0]])
        found = done["completion_probabilities"][0]["top_logprobs"]
        row = np.full(self.vocab_size, LEAST, dtype=np.float32)
        for each in found:
            row[each["id"]] = max(each["logprob"], LEAST)
        return row

    def write(self, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        """Greedily; the seconds are llama.cpp's own."""
        tokens: list[int] = []
        prompt = predicted = 0.0
        while len(tokens) < num_new:  # it stops where a text ends
            done = self._complete(ids + tokens, num_new - len(tokens), cache_prompt=bool(tokens))
            prompt = prompt or done["timings"]["prompt_ms"] / 1000
            predicted += done["timings"]["predicted_ms"] / 1000
            if not done["tokens"]:
                break
            tokens += done["tokens"]
        return tokens, prompt, predicted

    def _complete(self, ids: list[int], num_new: int, **options: Any) -> Any:
        return self._ask("/completion", prompt=ids, n_predict=num_new, temperature=0, return_tokens=True, **options)

    def _ask(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            self.server.listening_address + path, data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)


if __name__ == "__main__":
    questions, folder = read_questions()
    answer(Writer(questions["path"], questions["num_positions"], questions["has_template"]), questions, folder)
