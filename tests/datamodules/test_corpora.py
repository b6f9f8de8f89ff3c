import pytest

from datamodules.bad_records import BadRecords
from datamodules.corpora import corpus_file
from datamodules.text_source import TextSource, text_units
from datamodules.texts import texts_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_python_docs_is_real_prose_by_module(root):
    documents = [
        text for unit in text_units(TextSource("python_docs"), root) for text in texts_of(unit, BadRecords(unit))
    ]
    assert sum(map(len, documents)) > 1_500_000
    assert len(documents) > 400
    modules = [text.split("\n", 1)[0] for text in documents]
    assert {"argparse", "json", "asyncio.locks", "collections"} <= set(modules)
    assert not any(name.startswith(("test.", "idlelib", "lib2to3")) for name in modules)
    assert any("class argparse.ArgumentParser\n\nObject for parsing command line strings" in text for text in documents)
    assert any(text.startswith('The "assert" statement') or '"assert"' in text[:300] for text in documents)


def test_it_is_written_once(root):
    path = corpus_file("python_docs", root)
    written = path.stat().st_mtime_ns
    assert corpus_file("python_docs", root) == path and path.stat().st_mtime_ns == written
