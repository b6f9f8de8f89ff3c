"""A run of the tiny Llama in a process of its own, to be interrupted by signals."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks import (
    GracefulStop,
    Heartbeat,
    ModelFolder,
    NotFinite,
    RandomState,
    RunCheckpoint,
    Samples,
    StopWhen,
    Throughput,
)
from callbacks.stopping.agreement import Agreement
from tests.callbacks.tiny_llama import ShardedTinyModule, TinyData, TinyModule, tiny_trainer


class Record(Callback):
    """Appends the loss of each micro-batch, bit for bit, to `losses-RANK.jsonl`."""

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = step_seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        line = json.dumps([trainer.fit_loop.total_batch_idx, pl_module.losses[-1].hex()])
        with (Path(trainer.default_root_dir) / f"losses-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")
        time.sleep(self.step_seconds)


def recorded(root: Path, rank: int = 0) -> dict[int, str]:
    path = root / f"losses-{rank}.jsonl"
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


def ignore_signals(worker_id: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def become_rank(rank: int, world_size: int, port: int) -> None:
    """What torchrun sets; Lightning then joins the ranks instead of launching them."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "tiny", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}


def train(
    root: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    port: int = 0,
    sharded: bool = False,
    num_workers: int = 0,
    every_n_train_steps: int = 0,
    step_seconds: float = 0.0,
    callbacks: Callable[[], list[Callback]] = list,
    **settings: Any,
) -> None:
    """Trains in this process; goes on from the newest checkpoint in `root`. Exits with 3 after a graceful stop."""
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers; this process inherited forkserver
    log = os.open(root / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if world_size > 1:
        become_rank(rank, world_size, port)
        settings |= {"devices": world_size, "strategy": "ddp"}
    if sharded:
        settings["strategy"] = ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    seed_everything(1 + rank, verbose=False)
    checkpoints = root / "checkpoints"
    newest = max(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    stop = GracefulStop()
    saving = [ModelCheckpoint(checkpoints, every_n_train_steps=every_n_train_steps, save_top_k=-1, filename="{step}")]
    trainer = tiny_trainer(
        root,
        callbacks=[RandomState(), Record(step_seconds), *callbacks(), *(saving if every_n_train_steps else []), stop],
        enable_checkpointing=True,
        **settings,
    )
    data = TinyData(num_workers=num_workers, worker_init_fn=ignore_signals)
    module = ShardedTinyModule() if sharded else TinyModule()
    trainer.fit(module, data, ckpt_path=newest, weights_only=True)
    sys.exit(3 if stop.stopped else 0)


class EverBetter(ModelFolder):
    """Takes each validation for the best so far."""

    def _improves(self, value: float) -> bool:
        return True


def ever_better_folders() -> list[Callback]:
    return [EverBetter()]


def short_samples() -> list[Callback]:
    return [Samples(max_new_tokens=4), Throughput()]


class LogOnRanks(Callback):
    """Logs a metric that is NaN on the second rank from the third step on."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.log("train/odd", float("nan") if trainer.global_rank and trainer.global_step > 2 else 1.0)


def stops_by_what_one_rank_sees() -> list[Callback]:
    return [LogOnRanks(), StopWhen([NotFinite("train/odd", patience=4)]), RunCheckpoint()]


def heartbeats() -> list[Callback]:
    return [Heartbeat(timeout_s=2)]


def agree(root: Path, rank: int, port: int, numbers: list[int]) -> None:
    """Says the numbers on one of two ranks, and writes down the answers. The second rank speaks after the first."""
    become_rank(rank, 2, port)
    trainer = tiny_trainer(root, devices=2, strategy="ddp")
    trainer.strategy.setup_environment()
    agreement = Agreement(trainer)
    answers = []
    for i, number in enumerate(numbers):
        if rank == 1:
            wait_until((root / f"said-{i}").exists)
        answers.append(agreement.ask(number))
        (root / f"said-{i}").touch()
    answers += [agreement.settle(), agreement.settle()]
    (root / f"answers-{rank}.json").write_text(json.dumps(answers))


@contextmanager
def running(context: Any, root: Path, world_size: int = 1, **settings: Any) -> Any:
    """Starts the ranks of a run; kills what is left of them at the end."""
    root.mkdir(exist_ok=True)
    ranks = [
        context.Process(target=train, args=(root,), kwargs={"rank": rank, "world_size": world_size, **settings})
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def finish(context: Any, root: Path, **settings: Any) -> list[int]:
    """Runs to the end and returns the exit codes."""
    with running(context, root, **settings) as ranks:
        return exit_codes(ranks)


def exit_codes(ranks: list[Any], timeout_s: float = 60) -> list[int]:
    for process in ranks:
        process.join(timeout_s)
    return [process.exitcode for process in ranks]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the run did not get there")
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
