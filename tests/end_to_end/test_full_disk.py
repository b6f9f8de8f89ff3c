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


def test_a_model_folder_that_could_not_be_written_is_no_success(run, folder, mount_small_disk):
    """A chain would go on from another network, or from none."""
    small_disk = mount_small_disk(folder / "run" / "model", "40k")
    short = (*FIT, "--trainer.max_steps=3", "--trainer.val_check_interval=3")
    code, output = run(*short)
    assert code == 1 and "error: The disk was full: " in output and "Traceback" not in output, output
    assert "run/model/best and run/model/last could not be written" in output
    assert not list(small_disk.iterdir()) and (folder / "run" / "checkpoints" / "step=3.ckpt").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    code, output = run(*short)
    assert code == 0 and {path.name for path in small_disk.iterdir()} == {"best", "last"}, output
    best, last = ((small_disk / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last
