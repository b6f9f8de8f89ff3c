"""What only a GPU can show: `pytest -m gpu`. With GPU_TESTS_ON_CPU=1 the same tests run on a CPU, to try the tests."""

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, by the first product


@pytest.fixture
def device() -> torch.device:
    """The GPU, or the CPU where the tests themselves are tried."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if os.environ.get("GPU_TESTS_ON_CPU") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA device; GPU_TESTS_ON_CPU=1 runs it on the CPU")


@pytest.fixture
def deterministic():
    """Flash attention, for one, else adds up its gradients in any order."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
