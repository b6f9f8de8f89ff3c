"""A Triton model repository under load: many clients at once, none lost, each answer what it is without the others.

    python benchmarks/triton_load.py exported/triton-float32 --requests 1000 --clients 8

starts the server that nvidia-pytriton carries (`llm-lightning export --make triton`), asks each of 40 different
requests by itself, then sends `--requests` of them from `--clients` threads, half over HTTP and half over gRPC, stops
the server, starts it again, and asks each by itself once more. The exit code is 1 where a request is lost or two
answers to it differ. In float32 none should; in bfloat16 rounding depends on the batch.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

TEXTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea, and one about the mountains behind it.",
    "2 + 2 =",
    "Größe, naïve, Ærøskøbing: what do these words have in common?",
    "def add(a, b):",
    "Съешь же ещё этих мягких французских булок.",
    "Once upon a time there was a small house at the end of a long road, and in it lived",
    "我能吞下玻璃而不伤身体。",
    "List the days of the week, each on a line of its own, beginning with Monday.",
)


def requests() -> list[dict[str, Any]]:
    """Forty: each text as it is, then as a message; the most probable tokens and drawn ones, of different lengths."""
    return [
        {
            "text": text,
            "as_message": as_message,
            "max_tokens": 4 + (3 * number + 5 * drawn) % 17,
            "temperature": 0.8 * drawn,
            "seed": number,
        }
        for as_message in (False, True)
        for number, text in enumerate(TEXTS)
        for drawn in (False, True)
    ]


def inputs(asked: dict[str, Any], has_template: bool) -> dict[str, Any]:
    """What is sent for one request."""
    import numpy as np

    prompt = (
        {"messages": json.dumps([{"role": "user", "content": asked["text"]}])}
        if asked["as_message"] and has_template
        else {"text_input": asked["text"]}
    )
    return {
        **{name: np.array([text.encode()], dtype=object) for name, text in prompt.items()},
        "max_tokens": np.array([asked["max_tokens"]], dtype=np.int32),
        "temperature": np.array([asked["temperature"]], dtype=np.float32),
        "seed": np.array([asked["seed"]], dtype=np.int64),
    }


class Clients:
    """Connections to a running server: one for each thread and protocol."""

    def __init__(self, server: Any, count: int, has_template: bool) -> None:
        import tritonclient.grpc
        import tritonclient.http
        from triton_answers import Connection

        self.has_template = has_template
        protocols = [(tritonclient.http, server.http), (tritonclient.grpc, server.grpc)]
        self.each = [Connection(*protocols[number % 2], "language_model") for number in range(count)]

    def ask(self, client: int, asked: dict[str, Any]) -> list[int]:
        """The new token ids."""
        (ids,) = self.each[client].ask(["output_ids"], **inputs(asked, self.has_template))
        return [int(token) for token in ids]

    def alone(self) -> list[list[int]]:
        """The answers to all requests, one after the other."""
        return [self.ask(number % 2, asked) for number, asked in enumerate(requests())]


def load(clients: Clients, num_requests: int, expected: list[list[int]]) -> dict[str, Any]:
    """All clients at once; how many requests were answered, how many as expected, and how fast."""
    kinds, count = requests(), len(clients.each)
    half = len(kinds) // 2

    def work(client: int) -> list[tuple[int, list[int] | None, float]]:
        found = []
        for number in range(client, num_requests, count):
            # Neighbours in time are different ones; Triton makes batches of requests that have the same inputs.
            kind = (number * 7 % half) + (half if number >= num_requests / 2 else 0)
            start = time.perf_counter()
            try:
                answer: list[int] | None = clients.ask(client, kinds[kind])
            except Exception as error:  # a lost request, whatever lost it
                print(f"request {number} was lost: {error}", file=sys.stderr)
                answer = None
            found.append((kind, answer, time.perf_counter() - start))
        return found

    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        answers = [each for found in pool.map(work, range(count)) for each in found]
    seconds = time.perf_counter() - start
    answered = [(kind, answer) for kind, answer, _ in answers if answer is not None]
    waits = sorted(wait for *_, wait in answers)
    return {
        "requests": num_requests,
        "clients": count,
        "answered": len(answered),
        "equal": sum(answer == expected[kind] for kind, answer in answered),
        "requests_per_s": num_requests / seconds,
        "tokens_per_s": sum(len(answer) for _, answer in answered) / seconds,
        "median_wait_s": statistics.median(waits),
        "p95_wait_s": waits[int(0.95 * (len(waits) - 1))],
    }


def counted(url: str) -> tuple[int, int]:
    """Requests and batches, by the server's own count."""
    with urllib.request.urlopen(f"http://{url}/v2/models/language_model/stats") as reply:
        found = json.load(reply)["model_stats"][0]
    return found["inference_count"], found["execution_count"]


def measure(folder: Path, num_requests: int, num_clients: int) -> dict[str, Any]:
    """Start, ask, load, stop, start again, ask."""
    from triton_server import Server

    version = folder / "models" / "language_model" / "1"
    has_template = (version / "chat_template.jinja").is_file()
    with Server(folder / "models") as server:
        expected = Clients(server, 2, has_template).alone()
        before = counted(server.http)
        found = load(Clients(server, num_clients, has_template), num_requests, expected)
        answered, batches = (b - a for a, b in zip(before, counted(server.http), strict=True))
        found["mean_batch"] = answered / batches
    with Server(folder / "models") as server:
        again = Clients(server, 2, has_template).alone()
    found |= {"asked_again": len(again), "equal_again": sum(a == b for a, b in zip(again, expected, strict=True))}
    return found


def main() -> int:
    """Print what was found as JSON, and append it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an export, TARGET triton")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the result")
    args = parser.parse_args()
    if importlib.util.find_spec("pytriton") is None:
        from llm_lightning.export.environments import python_of

        return subprocess.run([python_of("triton"), __file__, *sys.argv[1:]]).returncode
    sys.path.insert(0, str(Path(__file__).parent.parent / "llm_lightning" / "export" / "answers"))
    found = {"benchmark": "triton", "model": args.folder.name, "threads": os.environ.get("OMP_NUM_THREADS")}
    found |= measure(args.folder.resolve(), args.requests, args.clients)
    print(json.dumps(found, indent=2))
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    right = found["answered"] == found["equal"] == args.requests and found["equal_again"] == found["asked_again"]
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
