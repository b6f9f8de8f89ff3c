"""`pytest -m gpu` with its outcome as figures; run as `python -m benchmarks.on_gpu.tests`."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.on_gpu.figures import append

QUICK = ("tests/gpu/test_attention.py", "tests/gpu/test_loss.py")
"""What a rehearsal runs of them: the others take a minute on a CPU."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = QUICK if args.device == "cpu" else ("tests/gpu",)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            *chosen,
            f"--junitxml={report}",
            "-p",
            "no:cacheprovider",
        ]
        code = subprocess.run(command, check=False).returncode
        for case in ElementTree.parse(report).iter("testcase"):
            outcomes = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            outcome = {
                "outcome": (outcomes[0] if outcomes else "passed", ""),
                "time": (float(case.get("time", 0)), "s"),
            }
            append(args.json, "tests", name, "all", outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
