"""Runs whose terminal is gone, or that are to show no progress."""

import signal

FIT = ("fit", "--config=tiny.yaml", "--trainer.max_steps=7")
HANG_UP = "{class_path: tests.signals.SignalAt, init_args: {name: SIGHUP, step: 4}}"


def test_a_hang_up_saves_and_a_run_without_progress_goes_on(run, folder):
    code, output = run(*FIT, f"--trainer.callbacks+={HANG_UP}")
    assert code == 128 + signal.SIGHUP and "Stopped at step 5, saved" in output, output
    code, output = run(*FIT, "--trainer.enable_progress_bar=false")
    assert code == 0 and "step=5.ckpt" in output and "step 7/7" not in output, output
