from dataclasses import replace

import pytest

from benchmarks.pretraining import CONTENDERS
from benchmarks.runner import measure
from benchmarks.workload import QUICK, Job, prepare

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.slow
def test_contenders_do_the_same_work(tmp_path):
    config = QUICK.config | TINY | {"intermediate_size": 64, "vocab_size": 512}
    shape = replace(QUICK, config=config, seq_len=32, warmup=1, steps=30)
    folder, rows = prepare(tmp_path, shape)
    job = Job(
        folder=str(folder), rows=str(rows), scratch="", result="", batch_size=2, seq_len=32, warmup=1, steps=30,
        precision="32-true", device="cpu", compile=False,
    )  # fmt: skip
    contenders = {c.name: c for c in CONTENDERS}
    losses = [measure(contenders[name], job, 1)["loss"] for name in ("llm-lightning", "transformers", "bare")]
    assert losses == pytest.approx([losses[-1]] * 3, abs=1e-4)
    assert losses[-1] < 6.0  # ln 512 = 6.24: weights did move


@pytest.mark.slow
def test_a_contender_that_fails_says_why(tmp_path):
    job = Job(
        folder=str(tmp_path / "missing"), rows="", scratch="", result="", batch_size=1, seq_len=8, warmup=1, steps=1,
        precision="32-true", device="cpu", compile=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="missing"):
        measure(next(c for c in CONTENDERS if c.name == "bare"), job, 1)
