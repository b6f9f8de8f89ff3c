"""Secrets are planted in every form that a command takes, and looked for in every byte that it leaves."""

import pytest

from llm_lightning.__main__ import main
from llm_lightning_safety import redaction
from tests.chat_server import ChatServer, send_json
from tests.end_to_end.test_synthetic import INSTRUCT, TEMPLATE, augmented  # noqa: F401 (a fixture)

KEY, EXTRA, NESTED, QUERY = "Key-In-The-Env-1", "Key-In-Extra-2", "Key-In-Headers-3", "Key-In-The-Url-4"
FLAG = "Key-In-A-Flag-5"
PLANTED = (KEY, EXTRA, NESTED, QUERY, FLAG)


@pytest.fixture
def server():
    with ChatServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())


def assert_nowhere(folder, output, secrets=PLANTED, but=()):
    for secret in secrets:
        assert secret not in output
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in but:
                assert secret.encode() not in path.read_bytes(), f"{secret} in {path}"


@pytest.fixture
def planted(augmented, server, monkeypatch):  # noqa: F811
    monkeypatch.chdir(augmented)
    monkeypatch.setenv("MY_ENGINE", KEY)
    extra = f"{{api_key: {EXTRA}, headers: {{X-Custom: {NESTED}}}, top_k: 5}}"
    url = f"{server.url}?api_key={QUERY}"
    config = INSTRUCT.replace(
        "URL, model_name: m", f"'{url}', model_name: m, api_key_variable: MY_ENGINE, extra: {extra}"
    )
    (augmented / "instruct.yaml").write_text(config)
    return augmented


ARGS = (
    "--config", "synthetic.yaml", "--config", "instruct.yaml", "--data.generators.instruct.count=8",
    f"--data.engine.init_args.extra.auth_token={FLAG}",
)  # fmt: skip


def test_augment_keeps_them_out_of_reports_records_and_messages(planted, capfd):
    assert main(["augment", *ARGS]) == 0
    output = "".join(capfd.readouterr())
    assert (planted / "synthetic" / "synthetic.parquet").exists()
    assert_nowhere(planted, output, but=("instruct.yaml",))
    shown = (planted / "synthetic" / "report.json").read_text()
    assert '"api_key": "***"' in shown and '"top_k": 5' in shown


def test_a_refusal_that_repeats_the_key(planted, server, capfd):
    def refuse(handler):
        send_json(
            handler,
            f'{{"error": "no such key: {KEY}, {EXTRA}, {QUERY}, {handler.headers["Authorization"]}"}}'.encode(),
            401,
        )

    server.fault = lambda body, attempt: refuse
    assert main(["augment", *ARGS, "--debug"]) == 2
    output = "".join(capfd.readouterr())
    assert "refuses the call with HTTP 401" in output and "Traceback" in output
    assert_nowhere(planted, output, but=("instruct.yaml",))


@pytest.mark.slow  # trains, validates and predicts in processes of their own
def test_a_run_with_wandb_leaves_none(planted, fresh_run):
    logger = (
        "--trainer.logger.class_path=llm_lightning.loggers.WandbRun",
        f"--trainer.logger.notes=see https://me:{FLAG}@host",
    )
    args = (*ARGS, *logger, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    env = {
        "MY_ENGINE": KEY,
        "WANDB_MODE": "offline",
        "HF_TOKEN": QUERY,
        "LLM_LIGHTNING__DATA__ENGINE__INIT_ARGS__EXTRA__API_KEY": EXTRA,
    }
    code, output = fresh_run("fit", *args, env=env)
    assert code == 0 and "llm-lightning predict" in output, output
    assert list((planted / "run" / "wandb").glob("offline-run-*/*.wandb")), output
    assert_nowhere(planted, output, but=("instruct.yaml",))
    for command in ("validate", "preview"):
        code, output = fresh_run(command, *args, env=env)
        assert code == 0, output
        assert_nowhere(planted, output, but=("instruct.yaml",))
