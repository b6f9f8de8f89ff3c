"""Runs the real command line in forks of a process that has imported it: a second a run instead of seven."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest


def _main(args: list[str], folder: str, output: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)  # as `python -m` does: rewards may be of the user's own
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, has it ignored
    import torch

    from llm_lightning.__main__ import main

    torch.set_num_threads(1)
    code = main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.fixture(scope="session")
def warm():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm_lightning.cli", "tests.signals"])
    return context


@pytest.fixture
def begin(warm, folder, cache, tmp_path_factory):
    """Start `llm-lightning ARGS` in `folder`; `.process` is the process, `.output()` what it wrote."""

    class Run:
        def __init__(self, *args: str, env: dict[str, str] | None = None) -> None:
            self.path = tmp_path_factory.mktemp("output") / "output.txt"
            environment = {"LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1"} | (env or {})
            self.process = warm.Process(target=_main, args=(list(args), str(folder), str(self.path), environment))
            self.process.start()

        def output(self) -> str:
            return Path(self.path).read_text() if Path(self.path).exists() else ""

        def end(self) -> tuple[int, str]:
            self.process.join(timeout=120)
            return self.process.exitcode, self.output()

    return Run


@pytest.fixture
def quick(begin):
    """Run `llm-lightning ARGS` to its end; returns exit code and output."""
    return lambda *args, env=None: begin(*args, env=env).end()
