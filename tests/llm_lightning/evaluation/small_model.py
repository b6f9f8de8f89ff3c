"""A small chat model in a folder, and tasks over data that are made here."""

import json
from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from tests.datamodules.chat_tokenizers import chat_tokenizer


def save_small_model(folder: Path, **changes) -> Path:
    """A Llama of random weights, wide enough apart that few of its choices are close."""
    torch.manual_seed(3)
    tokenizer = chat_tokenizer("smollm2")
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.25,
    }  # fmt: skip
    config = LlamaConfig(**settings | changes)
    save_model_folder(Backbone(config=config).build(tokenizer), tokenizer, folder)
    return folder


def questions(count: int = 12) -> list[dict]:
    """Sums, each with four options."""
    rows = []
    for number in range(count):
        a, b = number + 2, 3 * number + 1
        options = [str(a + b + shift) for shift in (0, 1, -1, 10)]
        order = [(number + place) % 4 for place in range(4)]
        rows.append(
            {
                "question": f"What is {a} plus {b}?",
                "choices": [options[place] for place in order],
                "answer": order.index(0),
                "solution": f"{a} + {b} = {a + b}\n#### {a + b}",
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path, name: str, data: Path, **settings) -> Path:
    """A task's YAML over a .jsonl file, as users write them for lm-eval."""
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data), "train": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1},
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


CHOICE = {
    "output_type": "multiple_choice",
    "fewshot_split": "train",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{solution}}",
    "generation_kwargs": {"until": ["Question:", "e"], "max_gen_toks": 40, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TEXT = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{solution}} {{question}} {{solution}} {{question}} {{solution}} {{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
