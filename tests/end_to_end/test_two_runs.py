"""A folder that a run is in."""

import signal
import time

FIT = ("fit", "--config=tiny.yaml", "--trainer.max_steps=12")


def content(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }  # the run that holds it goes on beating


def test_a_second_run_is_refused_and_reading_is_not(command, run, folder):
    first = command(*FIT)
    metrics = folder / "run" / "metrics.csv"
    while not (list((folder / "run").glob("checkpoints/step=*.ckpt")) and metrics.exists()):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    before = content(folder / "run")
    for also in ((), ("--resume=false",), ("--trainer.max_steps=5",)):
        code, output = run(*FIT, *also)
        assert code == 2 and f"Process {first.pid} on" in output and "trainer.default_root_dir" in output
    assert content(folder / "run") == before
    code, output = run("validate", "--config=tiny.yaml")
    assert code == 0, output
    assert content(folder / "run") == before
    code, output = run("predict", "--config=tiny.yaml", "--trainer.limit_predict_batches=1")
    assert code == 0, output
    assert {p.name for p in content(folder / "run").keys() - before.keys()} == {"predictions.jsonl", ".predict.lock"}

    first.kill()
    first.wait()
    code, output = run(*FIT)
    assert code == 0 and "Going on from" in output, output
