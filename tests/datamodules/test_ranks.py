"""Two real DDP ranks read what one process reads, whatever Lightning would like to do to their loaders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datamodules import recorder


def two_ranks(name: str, settings: dict) -> list[dict]:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, recorder.__file__, name, json.dumps({**settings, "devices": 2, "strategy": "ddp"})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{name}.{rank}").read_text()) for rank in range(2)]


def in_turns(ranks: list[dict]) -> list[list[int]]:
    """The rows of all ranks in their global order."""
    return [
        row for batches in zip(*(rank["seen"] for rank in ranks), strict=True) for batch in batches for row in batch
    ]


@pytest.mark.slow
def test_two_ranks_and_one_read_the_same_stream_and_resume_each_other(write_jsonl, cache, texts, tmp_path):
    settings = {"path": write_jsonl(texts[:30]), "cache": str(cache), "checkpoint": str(tmp_path / "a.ckpt")}
    one, _, data = recorder.fit(**settings, max_steps=40, save_at=10)
    stream = [row for batch in one.seen for row in batch]

    two = two_ranks(str(tmp_path / "resumed"), {**settings, "resume": True, "max_steps": 24})
    assert in_turns(two) == stream[10 * 4 : 10 * 4 + 14 * 8]

    # Lightning's own distributed sampler is on, as it is by default; it must not come between.
    two = two_ranks(str(tmp_path / "two"), {**settings, "max_steps": 20, "save_at": 7, "use_distributed_sampler": True})
    assert in_turns(two) == stream
    back_to_one, _, _ = recorder.fit(**settings, resume=True, max_steps=20)
    assert [row for batch in back_to_one.seen for row in batch] == stream[7 * 8 : 7 * 8 + 13 * 4]

    # Each validation row is seen once; the rank that is left without prompts repeats one, so that none waits for it.
    assert sorted(row for rank in two for row in rank["validated"]) == sorted(one.validated[: len(one.validated) // 2])
    assert data.statistics["val"]["num_documents"] == 3
    assert [rank["prompts"] for rank in two] == [3, 1]
