"""Other objectives of pretraining, through the command line."""

import csv
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from tests.config_files import adamw, config_of, part, saves_every

CONSTANT = ("--model.schedule.kind=constant", "--model.schedule.warmup=0", "--trainer.val_check_interval=100")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]


def weights(folder, step):
    return torch.load(folder / "checkpoints" / f"step={step}.ckpt", weights_only=True)["state_dict"]


def same_after_resuming(run, folder, fit, steps=40):
    """A run that was ended in its middle, read by other workers, and one that was not; returns its losses."""
    for root, until, workers in (("straight", steps, 0), ("run", steps // 2 + 3, 2), ("run", steps, 2)):
        code, output = run(
            *fit, *CONSTANT, f"--trainer.max_steps={until}", f"--data.num_workers={workers}",
            f"--trainer.default_root_dir={root}",
        )  # fmt: skip
        assert code == 0, output
    found, expected = losses(folder / "run"), losses(folder / "straight")
    assert len(expected) == steps and found == expected
    ours, theirs = weights(folder / "run", steps), weights(folder / "straight", steps)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return [float(loss) for loss in expected]


@pytest.mark.slow
def test_filling_in_resumes_bit_for_bit_and_learns(run, folder):
    fit = ("fit", "--config=tiny.yaml", "--config=objectives/fim", "--model.optimizer.lr=1e-2")
    fitted = same_after_resuming(run, folder, fit)
    assert sum(fitted[-5:]) / 5 < fitted[0] - 1.0
    markers = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "model" / "last")
    assert all(len(tokenizer(marker, add_special_tokens=False).input_ids) == 1 for marker in markers)
    assert set(markers) <= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def test_a_trained_network_without_markers_gets_new_ones(run, folder, network):
    fit = (
        "fit", "--model=CausalPretraining", f"--model.backbone.path={network}", "--data=TextDataModule",
        "--data.path=texts.jsonl", "--data.seq_len=64", "--data.batch_size=4", "--data.fim.rate=1",
        "--trainer.max_steps=2", "--trainer.default_root_dir=run",
    )  # fmt: skip
    code, output = run(*fit)
    assert code == 2 and "data.fim: the tokenizer has no markers of a family that is known" in output
    assert "Traceback" not in output
    (suggested,) = [
        word for word in output.replace("\n", " ").split("--") if word.startswith("model.backbone.new_tokens")
    ]
    tokens = suggested.split("'")[1]
    code, output = run(*fit, f"--model.backbone.new_tokens={tokens}")
    assert code == 0, output


@pytest.mark.parametrize(("setting", "words"), [("rate=1.5", "rate must lie between 0 and 1"), ("spm=1", "spm")])
def test_a_wrong_setting_is_named(run, folder, setting, words):
    code, output = run("fit", "--config=tiny.yaml", f"--data.fim.{setting}")
    assert code == 2 and words in output and "Traceback" not in output


MASKED = config_of(
    part(
        "MaskedPretraining",
        backbone={
            "config": part(
                "transformers.ModernBertConfig", hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=64, local_attention=16, mlp_dropout=0.1,
            ),
        },
        optimizer=adamw(1e-2),
    ),
    part("TextDataModule", path="texts.jsonl", vocab_size=500, seq_len=64, batch_size=4, val_share=0.1,
         masking={"probability": 0.3}),
    max_steps=40, val_check_interval=20, accumulate_grad_batches=2, callbacks=[saves_every(10)],
)  # fmt: skip

FILLED_IN_A_CLEAN_PROCESS = """
import sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForMaskedLM, AutoTokenizer))
ids = tokenizer(f"Return the {tokenizer.mask_token} of the items.", return_tensors="pt").input_ids
assert (ids == tokenizer.mask_token_id).sum() == 1
torch.save({"ids": ids, "logits": model(ids).logits.detach()}, sys.argv[2])
assert not any(name.startswith(("llm_lightning", "lightning")) for name in sys.modules)
"""


@pytest.mark.slow  # several runs of two networks
def test_masked_pretraining_resumes_bit_for_bit_learns_and_leaves_an_encoder(run, folder):
    (folder / "masked.yaml").write_text(MASKED)
    fitted = same_after_resuming(run, folder, ("fit", "--config=masked.yaml"))
    assert sum(fitted[-5:]) / 5 < fitted[0] - 0.5
    root = folder / "run"
    assert not (root / "samples").exists()
    out = folder / "logits.pt"
    subprocess.run([sys.executable, "-c", FILLED_IN_A_CLEAN_PROCESS, root / "model" / "last", out], check=True, cwd="/")
    saved = torch.load(out)
    from llm_lightning.models import tasks
    from llm_lightning.models.backbone import Backbone

    network = Backbone(path=str(root / "model" / "last")).build(task=tasks.MASKED).eval()
    trained = {name.removeprefix("model."): t for name, t in weights(root, 40).items() if name.startswith("model.")}
    network.load_state_dict(trained)
    torch.testing.assert_close(network(saved["ids"]).logits, saved["logits"], rtol=1e-5, atol=1e-5)

    code, output = run("validate", "--config=masked.yaml")
    assert code == 0 and "step=40.ckpt" in output, output
    code, output = run("predict", "--config=masked.yaml")
    assert code == 2 and "fill-mask" in output and "Traceback" not in output, output


def test_modules_and_data_of_different_objectives_are_told_apart(run, folder):
    code, output = run("fit", "--config=tiny.yaml", "--data.masking.probability=0.2")
    assert code == 2 and "CausalPretraining learns from texts, and TextDataModule gives masked texts" in output
    (folder / "masked.yaml").write_text(MASKED)
    code, output = run("fit", "--config=masked.yaml", "--data.masking=null")
    assert code == 2 and "--data TextDataModule --data.masking.probability 0.15" in output


SPANS = config_of(
    part(
        "SpanPretraining",
        backbone={
            "config": part(
                "transformers.T5Config", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu", dropout_rate=0.1,
            ),
        },
        optimizer=adamw(1e-2),
    ),
    part("TextDataModule", path="texts.jsonl", vocab_size=500, seq_len=64, batch_size=4, val_share=0.1,
         spans={"density": 0.15}),
    max_steps=40, val_check_interval=20, accumulate_grad_batches=2, callbacks=[saves_every(10)],
)  # fmt: skip

WRITTEN_IN_A_CLEAN_PROCESS = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
network, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
ids = network.generate(**tokenizer("The <extra_id_0> of it", return_tensors="pt"), max_new_tokens=5)[0].tolist()
assert ids[0] == tokenizer.pad_token_id and len(tokenizer("<extra_id_7>").input_ids) == 1
print("written", tokenizer.convert_ids_to_tokens(ids[1]))
"""


@pytest.mark.slow
def test_span_corruption_resumes_bit_for_bit_learns_and_is_loaded_without_us(run, folder):
    (folder / "spans.yaml").write_text(SPANS)
    fitted = same_after_resuming(run, folder, ("fit", "--config=spans.yaml"))
    assert sum(fitted[-5:]) / 5 < fitted[0] - 1.0
    command = [sys.executable, "-c", WRITTEN_IN_A_CLEAN_PROCESS, str(folder / "run" / "model" / "last")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert "written" in done.stdout, done.stderr
