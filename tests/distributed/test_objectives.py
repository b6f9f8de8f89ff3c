"""Filling in, masking and span corruption on two ranks of real processes, against one."""

import pytest

from tests.config_files import adamw, config_of, part
from tests.distributed.test_two_ranks import column

SETTINGS = ("--model.backbone.dropout=0", "--trainer.max_steps=8", "--trainer.val_check_interval=4")
MASKED = config_of(
    part(
        "MaskedPretraining",
        backbone={
            "config": part(
                "transformers.BertConfig", hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=64,
            ),
        },
        optimizer=adamw(1e-3),
    ),
    part("TextDataModule", path="texts.jsonl", vocab_size=500, seq_len=64, batch_size=4, val_share=0.1,
         masking={"probability": 0.3, "whole_words": True}),
    accumulate_grad_batches=2,
)  # fmt: skip

SPANS = config_of(
    part(
        "SpanPretraining",
        backbone={
            "config": part(
                "transformers.T5Config", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4
            ),
        },
        optimizer=adamw(1e-3),
    ),
    part("TextDataModule", path="texts.jsonl", vocab_size=500, seq_len=64, batch_size=4, val_share=0.1,
         spans={"mean_length": 2.0}),
    accumulate_grad_batches=2,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", ["tiny.yaml", "masked.yaml", "spans.yaml"])
def test_two_ranks_are_one(fresh_run, folder, config):
    """The same documents, cuts, masks and spans a step, over both ranks."""
    (folder / "masked.yaml").write_text(MASKED)
    (folder / "spans.yaml").write_text(SPANS)
    more = ["--config=objectives/fim"] if config == "tiny.yaml" else []
    fit = ("fit", f"--config={config}", *more, *SETTINGS)
    one = ("--data.batch_size=4", "--trainer.default_root_dir=one")
    two = ("--data.batch_size=2", "--trainer.default_root_dir=two", "--trainer.devices=2", "--trainer.strategy=ddp")
    for args in (one, two):
        code, output = fresh_run(*fit, *args)
        assert code == 0, output
    for name in ("train/loss", "train/grad_norm", "val/loss", "tokens"):
        found = column(folder / "two", name)
        assert found and found == pytest.approx(column(folder / "one", name), rel=1e-5), name
