"""The overlay of served rollouts on the command line, as it is shipped but for the address and the folder."""

import json
import re
from pathlib import Path

import pytest

from llm_lightning.__main__ import main
from tests.adapter_server import AdapterServer

CONFIGS = Path(__file__).parents[2] / "configs"
RULE = "--model.rewards={length: {function: {class_path: llm_lightning.rewards.Length, init_args: {target: 3}}}}"


@pytest.fixture
def server(network):
    with AdapterServer(network).running() as running:
        yield running


def fit(steps):
    return main(
        [
            "fit", f"--config={CONFIGS}/grpo.yaml", f"--config={CONFIGS}/peft/lora.yaml", "--config=served.yaml", RULE,
            "--model.backbone.path=network", "--data.path=prompts.jsonl", "--data.batch_size=2",
            "--data.max_prompt_tokens=64", "--model.rollout.num_samples=2", f"--trainer.max_steps={steps}",
            "--model.rollout.sampling.max_new_tokens=6", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0",
            "--trainer.default_root_dir=run",
        ]
    )  # fmt: skip


@pytest.mark.slow
def test_a_server_that_dies_leaves_the_checkpoint_of_the_step_before(
    tmp_path, cache, network, server, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    rows = [{"prompt": f"What is {number}?"} for number in range(40)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("network").symlink_to(network)
    overlay = (CONFIGS / "rollouts" / "served.yaml").read_text()
    overlay = re.sub(r"http://[^\"]*", server.url, overlay).replace("/dev/shm/llm-lightning-adapters", "adapters")
    Path("served.yaml").write_text(overlay.replace("max_retries: 4", "max_retries: 0, timeout: 20"))

    def fault(body, attempt):
        loads = sum(phase == "load" for phase, _ in server.phases)
        return (lambda handler: handler.connection.shutdown(2)) if loads == 2 and "prompt" in body else None

    server.fault = fault
    assert fit(2) == 2
    error = capfd.readouterr().err
    assert "came to nothing" in error and "Traceback" not in error
    assert [path.name for path in Path("run/checkpoints").glob("*.ckpt")] == ["step=1.ckpt"]
    server.fault = lambda body, attempt: None
    assert fit(2) == 0, capfd.readouterr().err
    assert (Path("run/checkpoints") / "step=2.ckpt").exists()
