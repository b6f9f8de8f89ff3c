import multiprocessing
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)  # a second thread only waits for the first on networks this small


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts real processes in which Lightning and transformers are imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.callbacks.tiny_run"])
    # The server looks for modules where a new interpreter does, and silently does without those it cannot find.
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        multiprocessing.forkserver.ensure_running()
    return context
