"""A student that writes a part of its own data: by the command line, killed and gone on, and mistakes."""

import pytest
import torch

from llm_lightning.__main__ import main
from tests.end_to_end.test_distillation import logged, taught  # noqa: F401 (a fixture)
from tests.end_to_end.test_resume import kill_after_steps, losses, weights

WRITES = ("--model.on_policy_share=0.5", "--model.sampling.max_new_tokens=12", "--model.objective.kind=reverse_kl")


@pytest.fixture
def here(taught, monkeypatch):  # noqa: F811
    monkeypatch.chdir(taught)
    return taught


def test_it_comes_near_its_teacher_and_goes_on_bit_for_bit(command, run, here):
    code, output = run("fit", "--config", "tiny.yaml", *WRITES, "--trainer.default_root_dir=straight")
    assert code == 0, output
    divergences = logged(here / "straight", "val/divergence")
    assert divergences[-1] < divergences[0]
    shares = logged(here / "straight", "train/on_policy_tokens")
    assert any(0 < share < 1 for share in shares) and len(shares) == 24
    assert all(1 <= length <= 12 for length in logged(here / "straight", "train/completion_length"))
    assert kill_after_steps(command, here, 8, *WRITES)
    code, output = run("fit", "--config", "tiny.yaml", *WRITES)
    assert code == 0 and "Going on from" in output, output
    assert losses(here / "run") == losses(here / "straight")
    ours, theirs = weights(here / "run"), weights(here / "straight")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


MISTAKES = [
    (["--model.on_policy_share=1.5"], "model.on_policy_share=1.5 must be at least 0 and at most 1"),
    (["--model.sampling.temperature=2"], "model.sampling has no effect while model.on_policy_share is 0"),
    ([*WRITES, "--model.teacher_logprobs=cached"], "a cached teacher does not know what the student is going to write"),
    ([*WRITES, "--model.sampling.temperature=-1"], "model.sampling.temperature=-1.0 must be at least 0"),
    (
        [*WRITES, "--data=TextDataModule", "--data.text_column=answer"],
        "TextDataModule gives none: take --data InstructionDataModule",
    ),
    (
        [*WRITES, "--model.sampling.max_new_tokens=100"],
        "model.sampling.max_new_tokens=100 behind a row of data.seq_len=64 is longer than the 128 positions of network",
    ),
]


def test_mistakes(here, capfd):
    for settings, words in MISTAKES:
        assert main(["fit", "--config", "tiny.yaml", *settings]) == 2, settings
        error = capfd.readouterr().err
        assert words in error and "Traceback" not in error, error
