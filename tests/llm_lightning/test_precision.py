import pytest
import torch
from lightning.pytorch import Trainer

from llm_lightning.run.precision import accelerator_here, use_fast_float32


def test_the_accelerator_is_the_one_that_lightning_takes():
    trainer = Trainer(accelerator="auto", logger=False, enable_checkpointing=False)
    assert accelerator_here() == trainer.accelerator.name()


@pytest.fixture
def fast_float32():
    before = torch.get_float32_matmul_precision()
    use_fast_float32()
    yield
    torch.set_float32_matmul_precision(before)


def test_fast_products_are_those_of_float32(fast_float32):
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ x.double()
    assert (x @ x - exact).norm() / exact.norm() < 1e-5  # products that round to bfloat16 are near 1e-2


def test_the_choice_is_the_machines_alone(fast_float32, monkeypatch):
    """A clock that runs wild must not change it, or a resumed run would not be the same run."""
    chosen = torch.get_float32_matmul_precision()
    times = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: next(times) ** 2 % 7)
    for _ in range(5):
        torch.set_float32_matmul_precision("highest")
        use_fast_float32()
        assert torch.get_float32_matmul_precision() == chosen
