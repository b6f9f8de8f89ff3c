"""`llm-lightning chat MODEL`: talk with a model in the terminal, or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser

if TYPE_CHECKING:
    from llm_lightning.inference.chat import Conversation
    from llm_lightning.rollouts import Speculation

USAGE = """\
usage: llm-lightning chat MODEL [options]

Talks with a model: a folder (full, quantized, pruned, or an adapter's), a .gguf file or a hub id, with a chat template.
Each line is a question; the reply appears as it is written, and Ctrl-C ends it. From a pipe lines are read in the same
way, and only the replies are written.

options:
  --system_prompt TEXT  stands before the conversation
  --temperature X       0.7 by default; 0 takes the likeliest token
  --top_p X             0.95 by default
  --max_new_tokens N    of a reply, at most: 512 by default
  --seed N              the same conversation with the same seed gets the same replies
  --speculative NAME    PromptLookup, or a smaller model with the same tokenizer (folder, .gguf file, hub id): drafts
                        that change no reply, and make it faster where they are right
  --dtype NAME          float32, bfloat16 or float16; by default bfloat16 on a GPU, float32 on a CPU

in the conversation:
  /save FILE            append it to a .jsonl file, as fine-tuning reads it
  /system TEXT          another system prompt, and a new conversation
  /reset                a new conversation
  /exit                 or Ctrl-D
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `chat`.
        debug: show the traceback of an error.
    """
    if not args or "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    parser = FlagParser("llm-lightning chat", add_help=False, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--system_prompt")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speculative")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    try:
        given = parser.parse_args(args)
        from llm_lightning.inference.chat import Conversation
        from llm_lightning.rollouts.local_engine import LocalEngine
        from llm_lightning.rollouts.sampling import Sampling

        sampling = Sampling(given.max_new_tokens, given.temperature, top_p=given.top_p)
        sampling.check("chat")
        drafts = _speculation(given.speculative)
        engine = LocalEngine(given.model, num_slots=1, dtype=given.dtype, field="MODEL", speculative=drafts)
        engine.check()
        _ = engine.network
        return _Terminal(Conversation(engine, sampling, given.seed, given.system_prompt)).run()
    except (UserError, OSError) as error:
        return report(error, debug)
    except KeyboardInterrupt:
        return 130


def _speculation(name: str | None) -> Speculation | None:
    from llm_lightning.rollouts import DraftModel, PromptLookup

    return None if name is None else PromptLookup() if name == PromptLookup.__name__ else DraftModel(name)


class _Terminal:
    """Lines in, replies out; what is said about them goes to stderr, and only where somebody sits there."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.is_interactive = sys.stdin.isatty()

    def run(self) -> int:
        """Until there are no more lines; exit code 2 where one of a pipe was a mistake."""
        code = 0
        for line in self._lines():
            if line == "/exit":
                break
            try:
                self._command(line) if line.startswith("/") else self._ask(line)
            except (UserError, OSError) as error:
                code = report(error, False)
                if self.is_interactive:
                    code = 0
        return code

    def _lines(self) -> Iterator[str]:
        if self.is_interactive:
            with suppress(ImportError):
                import readline  # noqa: F401 (arrow keys and history)
            with suppress(EOFError):
                while True:
                    if line := input("> ").strip():
                        yield line
        else:
            yield from filter(None, map(str.strip, sys.stdin))

    def _ask(self, line: str) -> None:
        turn = self.conversation.ask(line, lambda piece: print(piece, end="", flush=True))
        print(flush=True)
        if self.is_interactive:
            forgotten = f", {turn.num_forgotten} messages forgotten" if turn.num_forgotten else ""
            rate = turn.num_tokens / turn.seconds
            print(f"[{turn.num_tokens} tokens, {rate:.1f} tokens/s{forgotten}]", file=sys.stderr)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/save" and rest:
            self.conversation.save(Path(rest).expanduser())
        elif name in ("/reset", "/system"):
            self.conversation.messages.clear()
            if name == "/system":
                self.conversation.system_prompt = rest or None
        else:
            raise UserError(f"{line}: there are /save FILE, /system TEXT, /reset and /exit.")
