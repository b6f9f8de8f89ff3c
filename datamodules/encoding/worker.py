"""A process that tokenizes: `python -m datamodules.encoding.worker`, units in by standard input, outcomes out.

A process of its own rather than a fork, since a fork of a process with threads may hang; and it ends when its input
does, so that nothing is left running behind a parent that was killed.
"""

import json
import os
import signal
import sys
from importlib import import_module

from tokenizers import Tokenizer

from datamodules.errors import DataError
from datamodules.sources.units import Unit
from datamodules.storage.shards import Shard, write_shard


def main() -> None:
    """The first line says how to tokenize, each further one names a unit; each is answered by one line."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    setup = json.loads(sys.stdin.readline())
    module, name = setup["encoder"].split(":")
    encoder = getattr(import_module(module), name)(Tokenizer.from_file(setup["tokenizer"]), **setup["settings"])
    for line in sys.stdin:
        job = json.loads(line)
        try:
            write_shard(Unit(**job["unit"]), Shard(job["shard"]), encoder, setup["on_bad_record"])
            outcome = {}
        except DataError as error:
            outcome = {"error": str(error)}
        try:
            print(json.dumps(outcome), flush=True)
        except BrokenPipeError:
            os._exit(1)  # the parent is gone, and so is everybody who would want to read more


if __name__ == "__main__":
    main()
