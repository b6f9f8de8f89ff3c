"""A reward model behind Triton's Python backend: a text in, its reward out. See `../config.pbtxt` for a request."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from prompts import Prompt, Prompts, RequestError, refused
from transformers import AutoModelForSequenceClassification


class TritonPythonModel:
    """What the backend loads and calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load network and tokenizer of this folder, onto the GPU that Triton names or the CPU."""
        folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device("cuda", int(args["model_instance_device_id"])) if on_gpu else torch.device("cpu")
        network: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
        self.network = network.to(self.device).eval()
        self.prompts = Prompts(folder, getattr(network.config, "max_position_embeddings", None) or 2**30)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        responses: list[Any] = [None] * len(requests)
        read: dict[int, Prompt] = {}
        for number, request in enumerate(requests):
            try:
                read[number] = self.prompts.read(request)
            except RequestError as error:
                responses[number] = refused(error)
        for number, reward in zip(read, self._rewards(list(read.values())), strict=True):
            outputs = {
                "reward": np.array([[reward]], dtype=np.float32),
                "prompt": np.array([[read[number].text.encode()]], dtype=object),
                "prompt_ids": np.array([read[number].ids], dtype=np.int64),
            }
            responses[number] = pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in outputs.items()])
        return responses

    @torch.inference_mode()
    def _rewards(self, prompts: list[Prompt]) -> list[float]:
        """Of each; as one batch where the network knows which token fills up, since it reads the last other one."""
        padding = self.network.config.pad_token_id
        batches = [prompts] if padding is not None else [[prompt] for prompt in prompts]
        return [reward for batch in batches if batch for reward in self._of_batch(batch, padding or 0)]

    def _of_batch(self, prompts: list[Prompt], padding: int) -> list[float]:
        ids = torch.full((len(prompts), max(len(prompt.ids) for prompt in prompts)), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
        logits = self.network(ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return [float(reward) for reward in logits[:, 0]]
