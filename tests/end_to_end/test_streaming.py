"""A whole run from a web server, by the command line."""

import json

import pytest
import torch

from tests.config_files import config_of, part, samples_of, saves_every
from tests.datamodules.streaming.file_server import Server, fails

SECRET = "Secret-Of-The-Url-7"


@pytest.fixture
def server(folder, texts, network):
    (folder / "web").mkdir()
    lines = texts.splitlines(keepends=True)
    for number in range(3):
        (folder / "web" / f"part-{number}.jsonl").write_text("".join(lines[number::3]))
    data = part(
        "StreamingTextDataModule", tokenizer=str(network), seq_len=64, batch_size=4, window_tokens=4000, val_share=0.1,
        patience=3.0,
    )  # fmt: skip
    model = part("CausalPretraining", backbone={"path": str(network)}, schedule={"kind": "constant", "warmup": 2})
    callbacks = [saves_every(3), samples_of(8)]
    text = config_of(model, data, val_check_interval=6, accumulate_grad_batches=2, callbacks=callbacks)
    (folder / "stream.yaml").write_text(text)
    with Server(folder / "web").running() as running:
        yield running


def command(server, steps: int, *more: str) -> list[str]:
    url = f"{server.url}/part-*.jsonl?token={SECRET}"
    paths = [url.replace("*", str(number)) for number in range(3)]
    return ["fit", "--config", "stream.yaml", f"--data.path={json.dumps(paths)}", f"--trainer.max_steps={steps}", *more]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_it_trains_stops_and_goes_on_bit_for_bit_and_keeps_the_key(run, server, folder):
    code, output = run(*command(server, 12, "--trainer.default_root_dir=straight"))
    assert code == 0, output
    assert "Stream: 3 files" in output and "on disk at most" in output
    code, output = run(*command(server, 5))
    assert code == 0, output
    code, output = run(*command(server, 12, "--data.num_workers=1"))
    assert code == 0, output
    ours, expected = (weights(folder / name / "checkpoints" / "step=12.ckpt") for name in ("run", "straight"))
    assert all(torch.equal(ours[name], wanted) for name, wanted in expected.items())
    assert (folder / "run" / "model" / "last" / "model.safetensors").exists()
    assert any(SECRET in path for path in server.paths) and SECRET not in output
    for path in [*folder.rglob("run/**/*"), *folder.rglob("straight/**/*")]:
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_server_that_went_away_stops_the_run_with_one_message(run, server):
    server.fault = fails(500, 99)
    code, output = run(*command(server, 12))
    assert code == 2 and "could not be read in" in output and "HTTP 500" in output
    assert "Traceback" not in output and SECRET not in output


def test_a_run_without_an_end_is_refused(run, server):
    code, output = run(*command(server, -1))
    assert code == 2 and "trainer.max_epochs: nobody knows how many rows a stream has" in output
