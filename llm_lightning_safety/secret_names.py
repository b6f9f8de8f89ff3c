"""Which names are those of secrets: `apiKey`, `HF_TOKEN`, `data.api_key`, but not `tokenizer`, `api_key_variable`."""

import re
from functools import cache

_WORDS = {
    "password", "passwd", "passphrase", "passcode", "pwd", "pass", "secret", "secrets", "credential", "credentials",
    "apikey", "authtoken", "accesskey", "secretkey", "auth", "authorization", "bearer", "cookie", "cookies", "jwt",
    "signature", "sig", "headers", "netrc", "dsn",
}  # fmt: skip
_KEYS = re.compile(
    r"(^|_)(api|access|private|secret|encryption|signing|account|ssh|master|shared|client|license|admin|service"
    r"|subscription|auth|storage|sas|hf|hub|huggingface|wandb|openai|anthropic|azure|aws|gcp|google|mistral|groq|cohere"
    r"|together|openrouter|replicate|deepseek|fireworks)_keys?(_id)?($|_)"
)
_TOKEN = re.compile(r"(^|_)token$")
_TOKEN_OF_A_MODEL = re.compile(
    r"(^|_)(pad|eos|bos|unk|mask|cls|sep|special|stop|start|end|begin|image|video|audio|boi|eoi|new|next|first|last|per|each"
    r"|num|max|min|think|tool|turn|end_of_text|by|of|in|a|the|one|every|this|that|no)_token$"
)
# Names of where a secret is, not of what it is.
_PLACE = re.compile(r"_(variable|env|env_var|envvar|file|path|folder|dir|name|type|method|mode|class|schema)$")


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is to be hidden: `apiKey`, `API-KEY` and `data.api_key` read as `api_key`."""
    return _is_secret_name(name) if len(name) < 200 else False


@cache
def _is_secret_name(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = re.sub(r"[^A-Za-z0-9]+", "_", words).lower().strip("_")
    if _PLACE.search(words):
        return False
    if _WORDS & set(words.split("_")) or _KEYS.search(words):
        return True
    return bool(_TOKEN.search(words)) and not _TOKEN_OF_A_MODEL.search(words)
