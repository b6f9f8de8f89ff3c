"""Every form in which secrets come into settings and texts is hidden, and what only looks like one stays."""

import json
import shlex

import pytest

from llm_lightning_safety import redaction
from llm_lightning_safety.redaction import redact, redact_arguments, remember, remember_arguments
from tests.secret_forms import FORMS, LOOKS, ORDINARY, S


@pytest.mark.parametrize("text", FORMS)
def test_forms_in_texts(text):
    assert not any(
        S in redact(each)
        for each in (text, json.dumps(text), f"--time={text!r} is no.", repr(f"a\n{text}\nb"), repr(f"a\"\n{text}\n'b"))
    )
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


def test_all_forms_in_one_text():
    """Each with a secret of its own: where one ends, the next one begins."""
    secrets = [f"S3cr3t-{number:02d}-Value.9" for number in range(len(FORMS))]
    notes = "\n\n".join(form.replace(S, secret) for form, secret in zip(FORMS, secrets, strict=True))
    for text in (notes, json.dumps(notes), repr(notes), f"{{'notes': {notes!r}}}"):
        assert [secret for secret in secrets if secret in redact(text)] == []


def test_a_dictionary_keeps_its_form():
    text = "{class_path: OpenAIEngine, init_args: {url: 'http://h', extra: {api_key: abcdefgh, top_k: 5}}}"
    assert redact_arguments(["--data.engine", text]) == ["--data.engine", text.replace("abcdefgh", "***")]


@pytest.mark.parametrize("key", LOOKS)
@pytest.mark.parametrize("text", ["{}", "use {} here", "('{}',)", "x\\n{}\\n", "path=s3://bucket/{}/file", "a%20{}"])
def test_keys_that_are_known_by_their_look(key, text):
    assert key not in redact(text.format(key))


@pytest.mark.parametrize("text", ORDINARY)
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
    for text in (
        "a" * 50_000,
        "{" * 50_000,
        "--" * 20_000,
        "api_key: {" * 5_000,
        "x=" * 20_000,
        "://" + ":" * 20_000,
        "%" * 50_000,
        "a%2" * 20_000,
        "%20" * 20_000,
        "sha" * 20_000,
        "password " * 10_000,
        "a:b@" * 10_000,
        "https:/" * 8_000,
        "a.b.c+" * 10_000,
    ):
        redact(text)


def test_places_in_the_environment_are_no_secrets(monkeypatch, tmp_path):
    """PWD is where the shell is, and an agent's socket is called SSH_AUTH_SOCK."""
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    monkeypatch.setenv("MY_PASSWORD", S)
    assert redact(f"Data (cache: {tmp_path}/cache), {S}") == f"Data (cache: {tmp_path}/cache), ***"
