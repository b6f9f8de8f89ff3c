"""Compares mathematical answers by math-verify, in a process of its own: a line of JSON in, a line out.

It is run as a file and imports nothing of this project, as each rank has one. What it reads was written by a policy:
`9^9^9^9` must cost neither the run's memory nor its time, and sympy's parser evaluates what it is given.
"""

import json
import resource
import signal
import sys

MEMORY = 4 * 2**30
"""Bytes of address space; sympy takes about a tenth."""


def answer(request: dict) -> dict:
    """`right`: whether the completion has the answer; `read`: whether the answer itself could be read."""
    from math_verify import parse, verify

    # Of an alarm, which only Python heeds; who asks ends the process for what goes on.
    seconds = max(1, int(request["timeout"] / 4))
    wanted = parse(request["answer"], fallback_mode="no_fallback", parsing_timeout=seconds)
    if not wanted or request["completion"] is None:
        return {"read": bool(wanted), "right": False}
    given = parse(request["completion"], parsing_timeout=seconds)
    return {"read": True, "right": bool(verify(wanted, given, timeout_seconds=seconds))}


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which closes the input
    _limit(resource.RLIMIT_AS, MEMORY)
    for line in sys.stdin:
        request = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Where the run was killed nobody else would end this.
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + 4 * request["timeout"] + 2))
        try:
            reply = answer(request)
        except Exception:
            reply = {"read": True, "right": False}
        print(json.dumps(reply), flush=True)


def _limit(kind: int, value: int) -> None:
    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == "__main__":
    main()
