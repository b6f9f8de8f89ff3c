"""Asks the server over HTTP, with nothing but Python: `python client.py "What is the capital of France?"`."""

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any


def ask(url: str, model: str, **inputs: Any) -> dict[str, Any]:
    """The outputs of one request, by Triton's endpoint for language models."""
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/generate", json.dumps(inputs).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return dict(json.load(reply))


def main() -> None:
    """Print the answer to a message, or the reward of a conversation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--reply", help="of a reward model: what it judges")
    args = parser.parse_args()
    messages = [{"role": "user", "content": args.message}]
    if (Path(__file__).parent / "models" / "reward_model").is_dir():
        messages.append({"role": "assistant", "content": args.reply or ""})
        print(ask(args.url, "reward_model", messages=json.dumps(messages), add_generation_prompt=False)["reward"])
    else:
        options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        print(ask(args.url, "language_model", messages=json.dumps(messages), **options)["text_output"])


if __name__ == "__main__":
    main()
