"""Answers of a folder of ONNX, as Optimum loads it."""

import os
from typing import Any

import torch
from measuring import answer, read_questions
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification
from transformers import AutoTokenizer
from transformers_answers import Rewards, Writer


class Network:
    """Takes a text without a mask, as the networks of transformers do; Optimum's need one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.generation_config = getattr(model, "generation_config", None)

    def __call__(self, ids: torch.Tensor, past_key_values: Any = None, **options: Any) -> Any:
        """Of (1, T) new tokens behind those of the cache."""
        before = past_key_values[0][0].shape[2] if past_key_values is not None else 0
        mask = torch.ones(1, before + ids.shape[1], dtype=torch.long)
        if past_key_values is not None:
            options["past_key_values"] = past_key_values
        return self.model(input_ids=ids, attention_mask=mask, **options)


if __name__ == "__main__":
    questions, folder = read_questions()
    session = SessionOptions()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # which onnxruntime does not look at
        session.intra_op_num_threads = int(threads)
    scores = questions["is_reward_model"]
    auto: Any = ORTModelForSequenceClassification if scores else ORTModelForCausalLM
    network = Network(auto.from_pretrained(questions["path"], session_options=session))
    engine = (Rewards if scores else Writer)(AutoTokenizer.from_pretrained(questions["path"]), network)
    answer(engine, questions, folder)
