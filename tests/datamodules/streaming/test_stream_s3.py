"""A stream from an S3 server on this machine, through fsspec's own client."""

import subprocess
import sys
import time

import pytest

from datamodules.errors import DataError
from datamodules.streaming.builder import Builder
from datamodules.streaming.plan import Cursor
from datamodules.streaming.window import Window
from tests.datamodules.streaming.conftest import IN_A_FILE, NUM_FILES
from tests.datamodules.streaming.test_stream_faults import plan_of

pytestmark = pytest.mark.slow  # a server of another project, which takes seconds to start

SECRET = "Secret-Of-The-Bucket-3"


@pytest.fixture
def bucket(shards, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    s3fs.S3FileSystem.clear_instance_cache()  # they remember the address of an earlier server
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if "Running on" in line)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = s3fs.S3FileSystem()
        system.mkdir("texts")
        for path in shards.iterdir():
            system.put(str(path), f"texts/web/{path.name}")
        yield system
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("path", ["s3://texts/web/", "s3://texts/web/part-*"])
def test_a_bucket_is_read_once_and_a_changed_object_is_refused(bucket, tokenizer, cache, path, capfd):
    plan = plan_of(path, tokenizer, cache, window_tokens=3000)
    assert plan.units[0].path == "s3://texts/web/part-0.jsonl" and len(plan.units) == NUM_FILES
    builder, place, documents, number = Builder(plan, cache, cache / "copies-test"), Cursor(), 0, 0
    while place.turn == 0:
        builder.window(number, place, {})
        window = Window(cache / plan.key() / str(number))
        place, number = window.facts()["end"], number + 1
        documents += window.rows.statistics["num_documents"]
    assert documents == NUM_FILES * IN_A_FILE and number > 1
    time.sleep(1.1)  # S3's times have seconds
    bucket.pipe("texts/web/part-0.jsonl", b'{"text": "Another one."}\n')
    with pytest.raises(DataError, match=r"s3://texts/web/part-0\.jsonl has changed since this stream was begun"):
        builder.window(number, place, {})
    assert SECRET not in "".join(capfd.readouterr())
