"""A folder that a run is in."""

import os
import signal
import time

FIT = ("fit", "--config=tiny.yaml", "--trainer.max_steps=12")


def content(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }  # the run that holds it goes on beating


def test_a_second_run_is_refused_and_reading_is_not(begin, quick, folder):
    first = begin(*FIT)
    metrics = folder / "run" / "metrics.csv"
    while not (list((folder / "run").glob("checkpoints/step=*.ckpt")) and metrics.exists()):
        assert first.process.is_alive(), first.output()
        time.sleep(0.01)
    os.kill(first.process.pid, signal.SIGSTOP)
    before = content(folder / "run")
    for also in ((), ("--resume=false",), ("--trainer.max_steps=5",)):
        code, output = quick(*FIT, *also)
        assert code == 2 and f"Process {first.process.pid} on" in output and "trainer.default_root_dir" in output
    assert content(folder / "run") == before
    code, output = quick("validate", "--config=tiny.yaml")
    assert code == 0, output
    assert content(folder / "run") == before
    code, output = quick("predict", "--config=tiny.yaml", "--trainer.limit_predict_batches=1")
    assert code == 0, output
    assert {p.name for p in content(folder / "run").keys() - before.keys()} == {"predictions.jsonl", ".predict.lock"}

    os.kill(first.process.pid, signal.SIGKILL)
    first.end()
    code, output = quick(*FIT)
    assert code == 0 and "Going on from" in output, output
