"""The Triton Inference Server that nvidia-pytriton carries, serving a model repository on localhost."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytriton

CARRIED = Path(pytriton.__file__).parent / "tritonserver"
LIBRARIES = CARRIED.parent.parent / "nvidia_pytriton.libs"
MOST_SECONDS = 600
"""Until it is ready; it has loaded and warmed up the model then."""


class Server:
    """A server from `with` to its end.

    Attributes:
        http, grpc: where it listens, as HOST:PORT.

    Raises:
        RuntimeError: it ended before it was ready, with what it said; or it was not ready in ten minutes.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def __enter__(self) -> "Server":
        self.folder = tempfile.TemporaryDirectory()
        ports = _free_ports(2)
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in ports)
        command = [
            str(CARRIED / "bin" / "tritonserver"), f"--model-repository={self.repository}",
            f"--backend-directory={_backends(Path(self.folder.name))}",
            "--http-address=127.0.0.1", f"--http-port={ports[0]}",
            "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}", "--allow-metrics=false",
        ]  # fmt: skip
        self.log = Path(self.folder.name) / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=_environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def _wait(self) -> None:
        until = time.monotonic() + MOST_SECONDS
        while not _answers(f"http://{self.http}/v2/health/ready"):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Triton did not start: {_reason(self.log.read_text(errors='replace'))}")
            time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _reason(log: str) -> str:
    """What it said of the model that failed, else the end of what it said."""
    lines = log.splitlines()
    errors = [line for line in lines if "failed to load" in line or "Internal:" in line]
    return " ".join(errors or lines[-5:])[:1000]


def _backends(folder: Path) -> Path:
    """A folder of the Python backend alone, with the part of it that runs this version of Python."""
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = CARRIED / "python_backend_stubs" / version / "triton_python_backend_stub"
    for file in [*(CARRIED / "backends" / "python").iterdir(), stub]:
        if not (backend / file.name).exists():
            (backend / file.name).symlink_to(file)
    return backend.parent


def _environment() -> dict[str, str]:
    """Where the server finds its libraries and Python's; its backend takes the packages of the first `python3`."""
    libraries = [str(LIBRARIES), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
