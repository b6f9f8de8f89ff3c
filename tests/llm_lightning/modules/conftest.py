"""A tiny policy, and prompts and pairs for it."""

import json

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from transformers import LlamaConfig

from datamodules import PreferenceDataModule, PromptDataModule
from datamodules.encoding.tokenizer import train
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.modules.schedule import Schedule
from llm_lightning.rewards import Reward
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.modules.ppo_fits import ROLLOUT, Recorder, fast, share_of_a


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """A policy that writes any of its 320 tokens."""
    torch.manual_seed(0)
    tokenizer = train(iter(["What is 1 plus 2? It is a number, 3."] * 9), vocab_size=300)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, attention_dropout=0.1,
        initializer_range=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("policy")
    save_model_folder(Backbone(config=config).build(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    records = [{"prompt": f"What is {i} plus {i * i}?", "answer": i + i * i} for i in range(120)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer("smollm2").save_pretrained(folder)
    return folder


@pytest.fixture
def pairs_of(tokenizer_folder, tmp_path):
    """Serves preference pairs from a file."""

    def make(records, **settings):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        defaults = {"seq_len": 512, "batch_size": 1, "val_share": 0.0, "template": "chatml"}
        places = {"path": str(path), "tokenizer": str(tokenizer_folder), "cache_dir": str(tmp_path / "cache")}
        return PreferenceDataModule(**defaults | places | settings)

    return make


@pytest.fixture
def fit(policy_folder, prompts_file, tmp_path):
    def run(
        max_steps=2, batch_size=8, callbacks=(), ckpt_path=None, precision="32-true", val_batches=0, lr=1e-3,
        kind=Recorder, **settings,
    ):  # fmt: skip
        seed_everything(1, verbose=False)
        settings = {"rollout": ROLLOUT, "schedule": Schedule("constant", warmup=0)} | settings
        rewards = settings.pop("rewards", {"a": Reward(share_of_a)})
        module = kind(Backbone(path=str(policy_folder)), rewards, fast(lr), **settings)
        data = PromptDataModule(
            str(prompts_file),
            tokenizer=str(policy_folder),
            batch_size=batch_size,
            max_prompt_tokens=40,
            cache_dir=str(tmp_path / "cache"),
        )
        module.check(data)
        trainer = Trainer(
            accelerator="cpu", devices=1, precision=precision, max_steps=max_steps, callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False, logger=False,
            limit_val_batches=val_batches, use_distributed_sampler=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return module

    return run
