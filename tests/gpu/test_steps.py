"""Whole steps of a fit: they do not wait for the device, resume bit for bit, keep their memory and their precision."""

import contextlib
import warnings
from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback
from torch._dynamo.utils import counters

from tests.gpu.runs import Recorder, batches, fit

pytestmark = pytest.mark.gpu


@contextlib.contextmanager
def waits():
    """Where the host waits for the device inside of the context, as a list of messages with their places."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]


class Waits(Recorder):
    """Notes where a step waits: in the batch's transfer, in forward and backward, in what follows them."""

    def __init__(self, **backbone):
        super().__init__(**backbone)
        self.found = {"transfer": [], "forward": [], "backward": [], "step": []}

    def transfer_batch_to_device(self, *args):
        with waits() as self.found["transfer"]:
            return super().transfer_batch_to_device(*args)

    def training_step(self, *args):
        with waits() as self.found["forward"]:
            return super().training_step(*args)

    def backward(self, loss, *args, **kwargs):
        with waits() as self.found["backward"]:
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, *args, **kwargs):
        with waits() as self.found["step"]:
            super().configure_gradient_clipping(*args, **kwargs)


def test_a_step_waits_for_the_device_once(device):
    """For the sums and the norm together; the contexts hold what the last of the steps did."""
    module = Waits()
    fit(module, batches(5), device)
    assert len(module.losses) == 5
    assert not module.found["transfer"] + module.found["forward"] + module.found["backward"], module.found
    assert len(module.found["step"]) <= 1, Counter(module.found["step"])


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_goes_on_bit_for_bit(device, deterministic, tmp_path):
    whole, path = Recorder(), str(tmp_path / "half.ckpt")
    rows = batches(4)
    fit(whole, rows, device, max_epochs=2, callbacks=[SaveAt(4, path)])
    resumed = Recorder()
    fit(resumed, rows, device, max_epochs=2, ckpt_path=path)
    assert resumed.losses == whole.losses[4:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_mixed_precision_learns_as_float32_does(device):
    rows = batches(10)
    mixed, exact = Recorder(), Recorder()
    fit(mixed, rows, device, max_epochs=2)
    fit(exact, rows, device, max_epochs=2, precision="32-true")
    assert mixed.losses == pytest.approx(exact.losses, rel=1e-2)
    assert sum(exact.losses[-5:]) < 0.97 * sum(exact.losses[:5])


def test_compiled_layers_are_made_once_for_batches_of_every_kind(device):
    torch._dynamo.reset()
    counters.clear()
    module, graphs = Recorder(), []
    backend = "inductor" if device.type == "cuda" else "eager"

    class Compiled(Callback):
        def on_fit_start(self, trainer, pl_module):
            for layer in pl_module.model.get_decoder().layers:
                layer.compile(backend=backend)

        def on_train_batch_end(self, *_):
            graphs.append(counters["stats"]["unique_graphs"])

    fit(module, batches(20), device, callbacks=[Compiled()])
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert graphs[0] > 0 and graphs[-1] == graphs[2], graphs


def test_memory_does_not_grow(device):
    """Over 200 steps on a GPU; a CPU's has other tests."""
    count, held = (200 if device.type == "cuda" else 12), []

    class Held(Callback):
        def on_train_batch_end(self, *_):
            if device.type == "cuda":
                held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))

    module = Recorder()
    fit(module, batches(20) * (count // 10), device, max_steps=count, callbacks=[Held()])
    assert len(module.losses) == count
    if device.type == "cuda":
        allocated, reserved = zip(*held, strict=True)
        assert max(allocated[40:]) <= max(allocated[:40]) + 2**20
        assert reserved[-1] <= max(reserved[:40]) + 2**21


@pytest.mark.parametrize("recomputed", [False, True, "selective", "offload"])
def test_a_whole_step_in_bfloat16_is_near_float32_on_the_cpu(device, recomputed):
    """The same weights and batches, with another attention, loss and precision."""
    if recomputed == "offload" and device.type == "cpu":
        pytest.skip("there is no other memory to move activations to")
    rows, found, expected = batches(3), Recorder(activation_checkpointing=recomputed), Recorder()
    fit(found, rows, device)
    fit(expected, rows, torch.device("cpu"), precision="32-true")
    assert found.losses == pytest.approx(expected.losses, rel=1e-2)
