"""Warnings, log lines and tracebacks without secrets, whoever writes them."""

import logging
import sys
import traceback
import warnings
from functools import cache
from typing import Any

from llm_lightning_safety.redaction import redact


@cache
def redact_output() -> None:
    """To be called once in a process of its own."""
    _redact_logging()
    _redact_warnings()
    sys.excepthook = lambda kind, error, trace: print_traceback(error.with_traceback(trace))


def print_traceback(error: BaseException) -> None:
    """On standard error, as Python does."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _redact_logging() -> None:
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
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
