"""Networks are tried out by plain torch, also where kernels for GPUs are installed."""

import os
import subprocess
import sys

KERNEL = '''
"""Takes the place of a package built for CUDA, which refuses a CPU's tensors in these words."""


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    raise RuntimeError("Expected x.is_cuda() to be true, but got false.")
'''

PROGRAM = """
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from llm_lightning.models.backbone import Backbone

config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
print(Backbone(config=config).behaviour())
try:
    AutoModelForCausalLM.from_config(config)(input_ids=torch.arange(9)[None])
except RuntimeError as error:
    print(error)
"""


def test_kernels_for_gpus_do_not_keep_a_network_from_being_tried_out(tmp_path):
    (tmp_path / "causal_conv1d").mkdir()
    (tmp_path / "causal_conv1d" / "__init__.py").write_text(KERNEL)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    tried, afterwards = found.stdout.splitlines()
    assert "packs=False" in tried
    assert "is_cuda()" in afterwards  # what it runs by outside is its own affair
