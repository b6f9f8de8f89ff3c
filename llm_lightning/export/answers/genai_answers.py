"""Answers of a folder of onnxruntime-genai, as onnxruntime-genai loads it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from measuring import answer, read_questions


class Writer:
    """Model and tokenizer."""

    def __init__(self, path: str) -> None:
        config = genai.Config(path)
        if threads := os.environ.get("OMP_NUM_THREADS"):  # which onnxruntime does not look at
            config.overlay(
                json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}})
            )
        self.model = genai.Model(config)
        self.tokenizer = genai.Tokenizer(self.model)
        settings = json.loads((Path(path) / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.num_positions = settings["context_length"]
        ends = settings["eos_token_id"]
        self.ends = sorted(ends) if isinstance(ends, list) else [ends]
        self.has_template = _has_template(Path(path))

    def ids(self, text: str) -> list[int]:
        """Of a text."""
        return [int(number) for number in self.tokenizer.encode(text)]

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """By its own engine for templates."""
        if not self.has_template:
            return None
        try:
            return str(self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=begin_reply))
        except Exception as error:  # of any template
            return f"{type(error).__name__}: {error}"

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V)."""
        generator = self._started(ids, len(ids) + 1)
        return np.asarray(generator.get_output("logits"), dtype=np.float32)[0]

    def write(self, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        """Greedily, with the cache."""
        start = time.perf_counter()
        generator = self._started(ids, len(ids) + num_new)
        tokens = [_most_probable(generator)]
        began = time.perf_counter()
        while len(tokens) < num_new:
            generator.append_tokens(np.array(tokens[-1:], dtype=np.int32))
            tokens.append(_most_probable(generator))
        return tokens, began - start, time.perf_counter() - began

    def _started(self, ids: list[int], most: int) -> Any:
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=min(most, self.num_positions), do_sample=False)
        generator = genai.Generator(self.model, params)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        return generator


def _most_probable(generator: Any) -> int:
    return int(np.asarray(generator.get_logits()).reshape(-1).argmax())


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))


if __name__ == "__main__":
    questions, folder = read_questions()
    answer(Writer(questions["path"]), questions, folder)
