"""Warnings, log lines, tracebacks and errors without secrets, whoever writes them."""

import logging
import sys
import threading
import traceback
import warnings
from functools import cache
from typing import Any

from llm_lightning_safety.redaction import redact


@cache
def redact_output() -> None:
    """To be called once in a process of its own, when nobody else replaces `warnings.showwarning` any more."""
    _redact_logging()
    _redact_warnings()
    sys.excepthook = lambda kind, error, trace: print_traceback(error.with_traceback(trace))
    threading.excepthook = lambda failed: print_traceback(failed.exc_value) if failed.exc_value else None


def print_traceback(error: BaseException) -> None:
    """On standard error, as Python does."""
    print(_traceback(error), end="", file=sys.stderr)


def report(error: BaseException, debug: bool = False, field: str = "") -> int:
    """Print a user's mistake as one message; returns the exit code 2.

    Args:
        error: what was raised.
        debug: show the traceback, too.
        field: stands before the message.
    """
    from llm_lightning.messages import readable

    if debug:
        print_traceback(error)
    print(f"\nllm-lightning: error: {field}{readable(error)}", file=sys.stderr)
    return 2


def _traceback(error: BaseException) -> str:
    return redact("".join(traceback.format_exception(error)))


def _redact_logging() -> None:
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = _traceback(record.exc_info[1]).rstrip("\n")  # which formatters take as it is
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # logging reports such a call by itself
            return record
        if (clean := redact(text)) != text:
            record.msg, record.args = clean, None
        return record

    logging.setLogRecordFactory(made)


def _redact_warnings() -> None:
    show = warnings.showwarning

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        show(redact(str(message)), *args, **kwargs)

    warnings.showwarning = shown
