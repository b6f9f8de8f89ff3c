"""What would make a training step wait for a GPU, looked for where there is none; `tests/gpu` measures it.

A step waits where the host reads a number that the device holds, asks it how many of something there are, or hands it a
number of its own. All of them are operators that can be seen on a CPU too.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from llm_lightning.models.attention import Documents
from llm_lightning.models.attention.cuda import varlen_attention
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import pinned, prepare_batch
from llm_lightning.modules import CausalPretraining
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "lift_fresh", "is_nonzero", "equal.default")
CUDA = torch.device("cuda", 0)


class Watch(TorchDispatchMode):
    """Notes each operator for which a GPU's host would wait."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in WAITS):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def batch():
    return prepare_batch(stack(*(pack(random_documents([20, 30, 11], seed=row), 64) for row in range(2))))


@pytest.fixture
def module():
    made = CausalPretraining(Backbone(config=tiny_config()))
    made.model = made.backbone.build()
    return made


def test_forward_and_backward_wait_for_nothing(module, batch):
    module._num_bytes(batch["targets"])  # makes its table
    with Watch() as watch:
        module.training_step(batch, 0).backward()
    assert not watch.waits


def test_the_watch_sees_what_waits(module, batch):
    """transformers, called plainly, looks for documents in the positions."""
    with Watch() as watch:
        module.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"])
        torch.tensor(2.0)
    assert {name.split(".")[1] for name in watch.waits} == {"_local_scalar_dense", "lift_fresh"}


SHARED = torch.tensor([[0, 0, 10, 0, 0], [0, 10, 16, 0, 7], [0, 16, 24, 0, 0], [1, 0, 24, 0, 0]])
PLAIN = torch.tensor([[0, 0, 10, 0, 0], [0, 10, 24, 0, 0], [1, 0, 24, 0, 0]])


@pytest.mark.parametrize("spans", [PLAIN, SHARED], ids=["packed", "shared prompts"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_on_a_gpu_keeps_shape_dtype_and_device(spans, kv_heads):
    """By tensors that have these three, and no numbers."""
    documents = Documents.of_spans(spans, 24)
    names = [name for name in ("cu_seqlens", "source", "kept") if getattr(documents, name) is not None]
    with FakeTensorMode(allow_non_fake_inputs=True):

        def there(*shape, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device=CUDA)

        moved = {name: there(*(x := getattr(documents, name)).shape, dtype=x.dtype) for name in names}
        q, k, v = there(2, 4, 24, 8), there(2, kv_heads, 24, 8), there(2, kv_heads, 24, 8)
        with Watch() as watch:
            out = varlen_attention(q, k, v, replace(documents, **moved), 0.3, None)
    assert (out.shape, out.dtype, out.device) == ((2, 24, 4, 8), torch.bfloat16, CUDA)
    assert not watch.waits


def test_what_a_batch_was_prepared_with_is_pinned_too(batch, monkeypatch):
    """Pinning needs a GPU: here only what would be pinned is looked at."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: x is batch["input_ids"])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: asked.append(id(x)) or x)
    ready = pinned(batch | {"names": ["a"]})
    parts = [*(x for name, x in batch.items() if name not in ("input_ids", "documents")), batch["documents"].cu_seqlens]
    assert sorted(asked) == sorted(map(id, parts))
    assert ready["names"] == ["a"] and torch.equal(ready["documents"].cu_seqlens, batch["documents"].cu_seqlens)


def test_what_the_host_knows_is_logged_without_the_device(monkeypatch):
    """Lightning would copy each number to the module's device, and wait."""
    seen = []
    monkeypatch.setattr("lightning.pytorch.LightningModule.log", lambda self, name, value, *_, **__: seen.append(value))
    module = CausalPretraining(Backbone(config=tiny_config()))
    module.log("train/loss", 1.5)
    module.log_dict({"train/lr": 2, "tokens": torch.tensor(3.0, dtype=torch.float64)})
    assert [(x.device.type, float(x)) for x in seen] == [("cpu", 1.5), ("cpu", 2.0), ("cpu", 3.0)]
    assert [x.dtype for x in seen] == [torch.float32, torch.float32, torch.float64]
