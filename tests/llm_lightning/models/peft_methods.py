"""Every adapter method on a tiny Llama, and short runs with them."""

from collections.abc import Callable
from pathlib import Path

import peft
import torch
from lightning.pytorch import Callback, Trainer

from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule
from tests.llm_lightning.conftest import pack, random_documents, stack

LINEAR = {"target_modules": "all-linear"}

METHODS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, **LINEAR),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, **LINEAR),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, **LINEAR),
    "pissa": lambda: peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa", **LINEAR),
    "olora": lambda: peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="olora", use_rslora=True, **LINEAR),
    "head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "embeddings": lambda: peft.LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["embed_tokens"]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=8, total_step=1000, **LINEAR),
    "ia3": lambda: peft.IA3Config(),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, **LINEAR),
    "vera": lambda: peft.VeraConfig(r=16, target_modules=["q_proj", "v_proj"]),
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=5),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5),
    "prefix_projection": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16
    ),
    "llama_adapter": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2),
    "bottleneck": lambda: BottleneckConfig(reduction_factor=4),
}
MERGEABLE = ["lora", "rslora", "dora", "pissa", "olora", "head", "embeddings", "adalora", "ia3", "oft", "vera"]
RATES = {
    "adalora": 5e-2,
    "ia3": 3e-2,
    "vera": 5e-2,
    "pissa": 3e-3,
    "olora": 3e-3,
    "prompt_tuning": 5e-2,
    "prefix_tuning": 5e-2,
    "llama_adapter": 1e-1,
}


class Recorder(CausalPretraining):
    """Keeps the loss of each optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def step_metrics(self, totals):
        metrics = super().step_metrics(totals)
        self.losses.append(metrics["train/loss"])
        return metrics


def module(base: Path | str, config: peft.PeftConfig | None, lr: float = 1e-2, **backbone) -> Recorder:
    def adamw(params):
        return torch.optim.AdamW(params, lr=lr, weight_decay=0.0)

    return Recorder(Backbone(path=str(base), **backbone), adamw, Schedule("constant", warmup=0), peft=config)


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Two packed rows each, ragged."""
    return [
        stack(pack(random_documents([7, 14, 3], 2 * i), 28), pack(random_documents([20, 5], 2 * i + 1), 28))
        for i in range(count)
    ]


class SaveAfterEpoch(Callback):
    """A checkpoint in the middle of a run."""

    def __init__(self, path: Path, epoch: int = 0) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def fit(model: Recorder, epochs=4, ckpt_path: Path | None = None, callbacks=(), seed=1, **settings) -> Recorder:
    torch.manual_seed(seed)
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 1, "logger": False, "gradient_clip_val": 1.0} | settings,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return model


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Move what trains away from a start that changes nothing."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=g).to(parameter) * 0.1)
