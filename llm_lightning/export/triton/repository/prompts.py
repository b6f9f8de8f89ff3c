"""What a request to the server asks about."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from transformers import AutoTokenizer


class RequestError(ValueError):
    """A request that cannot be answered; the client is told why."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (empty where token ids were sent) and as token ids."""

    text: str
    ids: list[int]


class Prompts:
    """Reads one of `text_input`, `messages` and `input_ids`, by the model's tokenizer and chat template.

    Args:
        folder: of the model.
        most_tokens: that the network takes at once.
    """

    def __init__(self, folder: Path, most_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.most_tokens = most_tokens

    def read(self, request: Any) -> Prompt:
        """The prompt of a request; raises `RequestError` where there is none, or one that is too long."""
        prompt = self._read(request)
        if not prompt.ids:
            raise RequestError("The prompt is empty.")
        if len(prompt.ids) > self.most_tokens:
            raise RequestError(f"The prompt has {len(prompt.ids)} tokens, the model takes {self.most_tokens}.")
        return prompt

    def _read(self, request: Any) -> Prompt:
        ids = pb_utils.get_input_tensor_by_name(request, "input_ids")
        if ids is not None:
            array = ids.as_numpy()
            if len(array) != 1:
                raise RequestError("A request holds one prompt; the server makes the batches.")
            return Prompt("", array[0].tolist())
        if (messages := value(request, "messages")) is not None:
            text = self._rendered(messages.decode(), bool(value(request, "add_generation_prompt", True)))
            return Prompt(text, self.tokenizer(text, add_special_tokens=False).input_ids)
        if (given := value(request, "text_input")) is not None:
            return Prompt(given.decode(), self.tokenizer(given.decode()).input_ids)
        raise RequestError("Send one of text_input, messages and input_ids.")

    def _rendered(self, messages: str, begin_reply: bool) -> str:
        if not self.tokenizer.chat_template:
            raise RequestError("The model has no chat template: send text_input.")
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    json.loads(messages), tokenize=False, add_generation_prompt=begin_reply
                )
            )
        except Exception as error:  # a template can raise anything
            raise RequestError(f"{type(error).__name__}: {error}") from error


def value(request: Any, name: str, default: Any = None) -> Any:
    """The single value of an optional input; raises `RequestError` where there are several."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    array = tensor.as_numpy()
    if array.size != 1:
        raise RequestError(f"{name} holds {array.size} values. A request holds one; the server makes the batches.")
    return array.reshape(-1)[0]


def refused(error: Exception) -> Any:
    """The response to a request that cannot be answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
