"""A disk that fills up in the middle of a run, on a small file system of its own."""

import subprocess

FIT = ("fit", "--config", "tiny.yaml")


def test_the_last_checkpoint_survives_and_the_run_goes_on(run, folder, mount_small_disk):
    """There is room for one checkpoint and a part of the next."""
    small_disk = mount_small_disk(folder / "run" / "checkpoints", "900k")
    code, output = run(*FIT)
    assert code == 2 and "disk is full" in output and "Traceback" not in output, output
    assert [path.name for path in small_disk.iterdir()] == ["step=3.ckpt"]
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    code, output = run(*FIT)
    assert code == 0 and "step=3.ckpt" in output, output
