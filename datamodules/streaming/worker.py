"""A process that fills windows while another one trains: `python -m datamodules.streaming.worker`.

It ends when its input does, so that nothing is left running behind a parent that was killed.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from datamodules.errors import DataError
from datamodules.sources.units import Unit
from datamodules.streaming.builder import Builder
from datamodules.streaming.plan import Cursor, Plan
from llm_lightning_safety.redaction import redact


def main() -> None:
    """The first line says what the stream is, each further one names a window; each is answered by one line."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)  # they are the parent's to handle, and reach its whole group
    setup = json.loads(sys.stdin.readline())
    root = Path(setup["root"])
    builder = Builder(Plan.from_json(setup["plan"]), root, root / f"copies-{os.getpid()}")
    jobs: SimpleQueue[str] = SimpleQueue()
    Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        try:
            _fill(builder, json.loads(jobs.get()))
            outcome = {}
        except DataError as error:
            outcome = {"error": str(error)}
        except Exception:  # told by the process that can end the run
            outcome = {"failure": redact(traceback.format_exc())}
        with suppress(BrokenPipeError):
            print(json.dumps(outcome), flush=True)


def _listen(jobs: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # whatever it waits for; what lies about is removed by the next stream


def _fill(builder: Builder, job: dict) -> None:
    if "grown" in job:
        builder.grow(job["ledger"], [[Unit(**unit) for unit in files] for files in job["grown"]])
    if job["number"] is None:
        builder.validation()
    else:
        digests = {int(number): digest for number, digest in job["digests"].items()}
        builder.window(job["number"], Cursor(*job["begin"]), digests)


if __name__ == "__main__":
    main()
