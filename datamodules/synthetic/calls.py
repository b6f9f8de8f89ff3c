"""What a model was asked and what it answered, kept so that no call is made twice."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.cache import key_of
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.engine import Engine, Reply, Request
from llm_lightning_safety.files import open_unlinked
from llm_lightning_safety.seals import sealed_line, unsealed_line

KEY = re.compile(rb"[0-9a-f]{32} ")  # of `key_of`


class CallLog:
    """An append-only file of calls by the key of their content. One process has it open at a time.

    A line is written at once and whole; what a killed process left of its last one is cut off when the file is opened
    again, and what does not fit its checksum is left out, so that it is asked again, which a line then says. Held in
    memory are places, not texts: about 200 bytes a call.

    Args:
        path: the file; it is made where there is none.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, int] = {}
        # Unbuffered: what was noted outlives the process.
        self._writing = open_unlinked(path, "ab", buffering=0)
        self._reading = open_unlinked(path, "rb")
        self._end = 0
        num_damaged = 0
        for line in self._reading:
            if not line.endswith(b"\n"):
                break
            if (text := _text_of(line)) is None:
                num_damaged += 1
            else:
                self._places[text.partition(b" ")[0].decode()] = self._end
            self._end += len(line)
        self._writing.truncate(self._end)
        if num_damaged:
            words = f"{num_damaged:,} calls in {path} are not as they were written: they are made again"
            print(words, file=sys.stderr, flush=True)

    def __enter__(self) -> CallLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.close()
        self._reading.close()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Any:
        """What was noted under a key; None where there is nothing."""
        if key not in self._places:
            return None
        self._reading.seek(self._places[key])
        text = _text_of(self._reading.readline())
        assert text is not None
        return json.loads(text.partition(b" ")[2])

    def put(self, key: str, value: Any) -> None:
        """Note a value (anything JSON can write) under a key without blanks."""
        line = sealed_line(f"{key} {json.dumps(value)}\n".encode())
        self._writing.write(line)
        self._places[key] = self._end
        self._end += len(line)


def _text_of(line: bytes) -> bytes | None:
    """Key and value of a line; None where it is damaged. Lines of earlier versions begin with the key."""
    return line if KEY.match(line) else unsealed_line(line)


class CachedEngine(Engine):
    """An engine that asks another one only what the log does not know.

    Args:
        engine: what is asked.
        log: what is known, and where replies are noted as they come.
    """

    def __init__(self, engine: Engine, log: CallLog) -> None:
        self.engine = engine
        self.log = log

    @property
    def model(self) -> str:
        """The name of the engine's model."""
        return self.engine.model

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """The known texts, then the others as they are done; equal requests are one call."""
        unknown: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            key = key_of(self.model, asdict(request))
            if (known := self.log.get(key)) is not None:
                yield place, Reply(*known)
            else:
                unknown.setdefault(key, []).append(place)
        keys = list(unknown)
        for number, reply in self.engine.write([requests[unknown[key][0]] for key in keys]):
            num_prompt_tokens = getattr(reply, "num_prompt_tokens", 0)  # other packages' engines may not count them
            self.log.put(keys[number], [reply.text, reply.num_tokens, reply.is_finished, num_prompt_tokens])
            for place in unknown[keys[number]]:
                yield place, reply

    def perplexities(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Those that are known, and the engine's of the others."""
        keys = [key_of(self.model, "perplexity", list(conversation)) for conversation in conversations]
        unknown = [number for number, key in enumerate(keys) if self.log.get(key) is None]
        values = self.engine.perplexities([conversations[number] for number in unknown]) if unknown else []
        for number, value in zip(unknown, values, strict=True):
            self.log.put(keys[number], value)
        return [self.log.get(key) for key in keys]

    def settings(self) -> dict[str, Any]:
        """The settings of the engine beneath."""
        return self.engine.settings()

    def release(self) -> None:
        """Release what the engine beneath holds."""
        self.engine.release()

    def check(self) -> None:
        """Check the engine beneath."""
        self.engine.check()
