"""Runs the real command line in forks of a process that has imported it: a second a run instead of seven."""

import multiprocessing
import os
import signal
import subprocess
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


class Fork:
    """A run of the command line in a fork, with what tests ask of a `subprocess.Popen`."""

    def __init__(self, process: multiprocessing.Process, output: Path) -> None:
        self._process, self._output = process, output
        process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("llm-lightning", timeout, self._read())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self._read(), None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def _read(self) -> str:
        return self._output.read_text() if self._output.exists() else ""


@pytest.fixture(scope="session")
def warm():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm_lightning.cli", "tests.signals"])
    return context


@pytest.fixture
def command(warm, folder, cache, tmp_path_factory):
    """Start `llm-lightning ARGS` in `folder`; the fork is waited for, asked and killed as a `subprocess.Popen` is."""
    forks: list[Fork] = []

    def start(*args: str, env: dict[str, str] | None = None) -> Fork:
        output = tmp_path_factory.mktemp("output") / "output.txt"
        environment = {"LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1"} | (env or {})
        forks.append(Fork(warm.Process(target=_main, args=(list(args), str(folder), str(output), environment)), output))
        return forks[-1]

    yield start
    for fork in forks:
        fork.kill()


@pytest.fixture
def run(command):
    """Run `llm-lightning ARGS` to its end; returns exit code and output."""

    def finish(*args: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        process = command(*args, env=env)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    return finish
