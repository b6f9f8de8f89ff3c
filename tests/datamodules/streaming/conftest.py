import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard

from datamodules.encoding.tokenizer import train
from tests.datamodules.streaming.file_server import Server

NUM_FILES, IN_A_FILE = 5, 24


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train(iter(["Document 17 of the shard, word by word. "] * 9), vocab_size=300).save_pretrained(folder)
    return str(folder)


def document(number: int) -> str:
    rng = random.Random(number)
    return f"Document {number}. " + " ".join(rng.choices(["word", "by", "shard", "the", "of"], k=rng.randint(1, 60)))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of files in several formats, 24 documents in each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(NUM_FILES):
        texts = [document(number * IN_A_FILE + i) for i in range(IN_A_FILE)]
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        if number == 1:
            (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
        elif number == 2:
            (folder / f"part-{number}.jsonl.zst").write_bytes(zstandard.compress(data))
        elif number == 3:
            write_parquet(folder / f"part-{number}.parquet", texts)
        elif number == 4:
            (folder / f"part-{number}.txt").write_text("<|endoftext|>".join(texts))
        else:
            (folder / f"part-{number}.jsonl").write_bytes(data)
    return folder


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=5)


@pytest.fixture
def server(shards):
    with Server(shards).running() as running:
        yield running
