"""Every form in which secrets come into settings and texts is hidden, and what only looks like one stays."""

import shlex

import pytest

from llm_lightning_safety import redaction
from llm_lightning_safety.redaction import redact, redact_arguments, remember, remember_arguments

S = "S3cr3t-Value.9"
FORMS = [
    f"{{api_key: {S}}}",
    f"{{top_k: 5, api_key: '{S}', n: 1}}",
    f"extra={{'api_key': '{S}', 'a': 2}}",
    f'{{"extra": {{"headers": {{"X-Custom": "{S}"}}}}}}',
    f'{{"Authorization": "Bearer {S}"}}',
    f'{{\\"api_key\\": \\"{S}\\"}}',
    f"credentials: {{user: {{name: a, pass: {S}}}, other: {S}}}",
    f"api_keys: [{S}, {S}]",
    f"http://user:{S}@host:8000/v1",
    f"https://user:p@{S}@host/v1",
    f"https://user:a/{S}@host/v1",
    f"https://{S}@host/v1",
    f"https://host/v1?api-version=2&api_key={S}",
    f"https://host/v1?X-Amz-Signature={S}&part=1",
    f"https://host/v1#access_token={S}",
    f"https://host/v1?code={S}",
    f"export OPENAI_API_KEY={S}",
    f"export DB_PASSWORD='{S} {S}'",
    f"curl -H 'Authorization: Bearer {S}' http://host",
    f"curl -H 'X-Api-Key: {S}' http://host",
    f"huggingface-cli login --token {S}",
    f"mytool --password={S} --x",
    f"Namespace(url='http://host', api_key='{S}', a=1)",
    f"together_token: {S}",
    f"Incorrect API key provided, authorization=Basic {S}",
    f"cookie: session={S}",
    f"api_key: |\n  {S}\n  {S}\nother: 3",
    f"api_keys:\n- {S}\n- {S}\nother: 3",
    f"api_keys:\n  - {S}\n  - {S}\nother: 3",
    f"wandb login --relogin {S}",
    f"hf auth login {S}",
    f"DefaultEndpointsProtocol=https;AccountKey={S};EndpointSuffix=core",
]


@pytest.mark.parametrize("text", FORMS)
def test_forms_in_texts(text):
    assert S not in redact(text)
    assert S not in str(redact({"note": text, "notes": [text, (text,)]}))
    assert S not in " ".join(redact_arguments(["fit", f"--data.x={text}", "--data.y", text]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.engine.init_args.extra.api_key", S],
        [f"--data.engine.init_args.extra={{auth: {{a: {{b: {S}}}, c: {S}}}, top_k: 5}}"],
        ["--sweep", f"data.engine.init_args.extra.api_key={S},other-{S}"],
        [f"--setup=export TOKEN={S}"],
        ["--data.engine", f"{{init_args: {{extra: [{{secret_key: {S}}}]}}}}"],
    ],
)
def test_forms_in_arguments(arguments):
    assert S not in shlex.join(redact_arguments(arguments))


def test_a_dictionary_keeps_its_form():
    text = "{class_path: OpenAIEngine, init_args: {url: 'http://h', extra: {api_key: abcdefgh, top_k: 5}}}"
    assert redact_arguments(["--data.engine", text]) == ["--data.engine", text.replace("abcdefgh", "***")]


@pytest.mark.parametrize(
    "text",
    [
        "api_key_variable=OPENAI_API_KEY", "--data.engine.init_args.api_key_variable OPENAI_API_KEY",
        "http://localhost:8000/a@b?x=1", "train/loss: 3.25, tokens: 5, token: 7", "pad_token='<pad>' eos_token: </s>",
        "max_new_tokens: 64", "num_key_value_heads=2", "state_key: step", "export HF_TOKEN=$(cat ~/.token)",
        "export HF_TOKEN=$MY_HF", "author: me", "--tokenizer gpt2", "sort_key=length", "password_file: /run/pass.txt",
        "use the first pass, then --resume false", "token: null, auth: true", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_what_was_seen_under_a_secret_name_is_hidden_wherever_it_is_repeated(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())
    said = f"401: {S} is no key of ours"
    assert redact(said) == said
    remember({"engine": {"extra": {"api_key": S}}})
    assert redact(said) == "401: *** is no key of ours"
    remember_arguments(
        ["fit", "--data.extra", "{password: Other-Secret}", "--hub.token", "A-Third-One", "--x", "ordinary words"]
    )
    remember({"url": "https://me:In-The-Url-1@host/v1?api_key=In-The-Url-2"})
    assert redact("In-The-Url-1 or In-The-Url-2") == "*** or ***"
    assert redact("Other-Secret A-Third-One ordinary words") == "*** *** ordinary words"


def test_what_the_environment_holds_is_hidden(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())
    monkeypatch.setenv("SOME_SERVICE_API_KEY", S)
    assert S not in redact(f"the server says {S}")
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "short")
    assert redact("a short text") == "a short text"
    monkeypatch.setenv("MY_ENGINE", S)
    assert S in redact(f"the server says {S}")
    remember({"api_key_variable": "MY_ENGINE"})
    assert S not in redact(f"the server says {S}")


def test_long_and_odd_texts_take_no_time():
    for text in ("a" * 50_000, "{" * 50_000, "--" * 20_000, "api_key: {" * 5_000, "x=" * 20_000, "://" + ":" * 20_000):
        redact(text)


def test_places_in_the_environment_are_no_secrets(monkeypatch, tmp_path):
    """PWD is where the shell is, and an agent's socket is called SSH_AUTH_SOCK."""
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    monkeypatch.setenv("MY_PASSWORD", S)
    assert redact(f"Data (cache: {tmp_path}/cache), {S}") == f"Data (cache: {tmp_path}/cache), ***"
