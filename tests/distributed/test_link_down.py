"""Two hosts (network namespaces with a cable between them) under torchrun; the link goes down in mid-run.

Needs root and `ip` (Debian's iproute2).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.command_line import ROOT
from tests.end_to_end.test_resume import losses

pytestmark = pytest.mark.slow

HOSTS = ("llm-left", "llm-right")
ADDRESSES = ("10.79.0.1", "10.79.0.2")
FIT = (
    "fit", "--config", "tiny.yaml", "--data.batch_size=2", "--trainer.num_nodes=2", "--trainer.devices=1",
    "--trainer.strategy=ddp",
)  # fmt: skip
SLOW = (
    "--trainer.callbacks+=[{class_path: tests.slurm.pace.Pace, init_args: {seconds: [0.3]}}, "
    "{class_path: Heartbeat, init_args: {timeout_s: 10}}]"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("two network namespaces need root and ip (iproute2)")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "eth0", "netns", HOSTS[0], "type", "veth", "peer", "name", "eth0", "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host, "link", "set", device, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


@pytest.fixture
def both(folder, cache, hosts):
    """Start the same command on both hosts, by torchrun."""
    started = []

    def start(*args: str) -> list[subprocess.Popen]:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
        }  # fmt: skip
        for rank, host in enumerate(HOSTS):
            torchrun = [
                "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                "--nproc-per-node=1", f"--node-rank={rank}", f"--master-addr={ADDRESSES[0]}", "--master-port=29611",
                "-m", "llm_lightning",
            ]  # fmt: skip
            log = (folder / f"log-{rank}.txt").open("w")
            process = subprocess.Popen([*torchrun, *args], cwd=folder, env=environment, stdout=log, stderr=log)
            started.append(process)
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_it_fails_in_time_says_which_rank_and_goes_on(both, fresh_run, folder):
    code, output = fresh_run(
        *FIT[:4], "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir=straight"
    )
    assert code == 0, output

    ranks = both(*FIT, SLOW)
    seen = folder / "run" / "rank-0.jsonl"
    end = time.monotonic() + 240
    while not seen.exists() or json.loads(seen.read_text().splitlines()[-1])["step"] < 7:
        assert time.monotonic() < end and all(rank.poll() is None for rank in ranks), log(folder)
        time.sleep(0.05)
    ip("-n", HOSTS[1], "link", "set", "eth0", "down")
    down = time.monotonic()
    assert all(rank.wait(90) for rank in ranks), log(folder)
    print(f"both hosts' ranks had ended {time.monotonic() - down:.1f} s after the link went down")
    assert re.search(r"silent for 10 s, last heard of: rank 1 on \S+ in step \d", log(folder, 0)), log(folder)
    assert re.search(r"silent for 10 s, last heard of: rank 0 on \S+ in step \d", log(folder, 1)), log(folder)
    saved = max(int(path.stem.split("=")[1]) for path in (folder / "run" / "checkpoints").glob("step=*.ckpt"))
    assert saved >= 6

    ip("-n", HOSTS[1], "link", "set", "eth0", "up")
    assert [rank.wait(240) for rank in both(*FIT)] == [0, 0], log(folder)
    assert f"Going on from run/checkpoints/step={saved}.ckpt" in log(folder)
    assert losses(folder / "run") == losses(folder / "straight")


def log(folder, *ranks: int) -> str:
    return "\n".join((folder / f"log-{rank}.txt").read_text() for rank in ranks or (0, 1))
