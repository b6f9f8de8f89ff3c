"""Every quantization scheme: what it writes loads, runs on the device and says what the original says."""

import math

import pytest
import torch

from callbacks.quantization import SCHEMES, layers
from callbacks.quantization.request import Request
from callbacks.quantization.trial import Trial
from tests.callbacks.quantized import IDS, OPTIONS, needs, wide_network
from tests.callbacks.tiny_llama import tiny_tokenizer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_runs(device, tmp_path, name):
    scheme = SCHEMES[name]
    needs(name)
    if not scheme.runs_on(device):
        pytest.skip(f"needs compute capability {scheme.capability}, and this is {device}")
    torch.manual_seed(0)
    wide_network().save_pretrained(tmp_path / "original")
    tiny_tokenizer().save_pretrained(tmp_path / "original")
    rows = [IDS.clone() for _ in range(4)]
    trial = Trial(tmp_path / "original", device, [{"input_ids": row, "labels": row} for row in rows])
    request = Request(
        source=trial.folder, output=tmp_path / name, bits=scheme.bits, group_size=32 if scheme.grouped else None,
        symmetric=bool(scheme.symmetric), kept=layers.kept_layers(trial.network, None), device=device,
        dtype=scheme.dtype or torch.bfloat16, rows=[row[0] for row in rows] if scheme.calibrated else (),
        options=OPTIONS.get(name, {}),
    )  # fmt: skip
    measured = trial.run(name, request, None)
    assert math.isfinite(measured.quality.loss)
    assert scheme.cost or measured.increase_over(trial.original) < 0.1
    assert measured.speed.decode_tokens_per_s > 0 and measured.speed.prefill_tokens_per_s > 0
