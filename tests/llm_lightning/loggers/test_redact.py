import pytest

from llm_lightning.loggers.redact import redact, redact_arguments

HF = "hf_" + "aBcD" * 8
OPENAI = "sk-proj-" + "a1B2" * 8
WANDB = "0123456789abcdef" * 2 + "01234567"
AWS = "AKIA" + "ABCD1234" * 2


@pytest.mark.parametrize(
    "name",
    [
        "token", "hf_token", "HF_TOKEN", "api_key", "apiKey", "API-KEY", "openai_api_key", "password", "db_password",
        "secret", "client_secret", "aws_secret_access_key", "aws_access_key_id", "credentials", "private_key",
        "access_token", "use_auth_token", "auth", "data.api_key",
    ],
)  # fmt: skip
def test_values_under_secret_names_are_hidden(name):
    assert redact({name: "value"}) == {name: "***"}


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer", "max_new_tokens", "pad_token", "eos_token", "bos_token", "unk_token", "pad_token_id", "tokens",
        "num_tokens", "token_dropout", "key", "keys", "num_key_value_heads", "state_key", "monitor", "author",
        "seq_len", "tokens_per_batch", "cls_token", "special_tokens", "mask_token", "secretary",
    ],
)  # fmt: skip
def test_ordinary_names_are_kept(name):
    assert redact({name: "value"}) == {name: "value"}


@pytest.mark.parametrize("key", [HF, OPENAI, WANDB, AWS, "ghp_" + "a" * 36, "xoxb-1234567890-abc"])
def test_keys_are_hidden_wherever_they_stand(key):
    assert redact({"path": key, "notes": [f"use {key} here", {"deep": (key,)}]}) == {
        "path": "***",
        "notes": ["use *** here", {"deep": ("***",)}],
    }


def test_credentials_in_urls_are_hidden_and_the_rest_is_kept():
    assert redact("s3://user:pass@host/bucket/file.parquet?sig=abc&part=1&api_key=x#top") == (
        "s3://***@host/bucket/file.parquet?sig=***&part=1&api_key=***#top"
    )
    assert redact("https://host/a@b?x=1") == "https://host/a@b?x=1"


def test_a_commit_is_kept_under_its_name():
    assert redact({"revision": WANDB, "commit_hash": WANDB}) == {"revision": WANDB, "commit_hash": WANDB}
    assert redact({"revision": HF}) == {"revision": "***"}


def test_everything_under_a_secret_name_is_hidden_but_whether_it_is_set():
    assert redact({"credentials": {"user": "me", "codes": [1, 2]}, "token": None, "auth": True}) == {
        "credentials": {"user": "***", "codes": ["***", "***"]},
        "token": None,
        "auth": True,
    }


def test_the_config_itself_is_left_alone():
    config = {"api_key": "value", "data": {"token": "value"}, "lr": 1e-3, "steps": 10}
    assert redact(config) == {"api_key": "***", "data": {"token": "***"}, "lr": 1e-3, "steps": 10}
    assert config["data"]["token"] == "value"


def test_arguments_are_hidden_in_both_spellings():
    arguments = ["fit", "--data.api_key", "x", "--hub.token=y", "--config", "a.yaml", f"--data.path={HF}", "--debug"]
    assert redact_arguments(arguments) == [
        "fit", "--data.api_key", "***", "--hub.token=***", "--config", "a.yaml", "--data.path=***", "--debug",
    ]  # fmt: skip
