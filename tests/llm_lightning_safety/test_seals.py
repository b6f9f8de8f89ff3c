"""What is sealed is either what was written, or is not taken."""

import json

import pytest

from llm_lightning_safety.seals import (
    SEAL,
    is_whole,
    read_json,
    seal_folder,
    sealed_line,
    unsealed,
    unsealed_line,
    write_json,
)

VALUE = {
    "sizes": {"tokens": 4096, "é": 0.1},
    "first": 'half a character \ud83d, {"a": 1}',
    "none": None,
    "left": [1, 2],
}


def flips(data):
    for place in range(len(data)):
        for bit in (0, 5, 7):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_json_with_a_flipped_bit_is_refused_or_says_the_same(tmp_path):
    write_json(tmp_path / "a.json", VALUE)
    assert read_json(tmp_path / "a.json") == VALUE
    data = (tmp_path / "a.json").read_bytes()
    assert json.loads(data).items() > VALUE.items()
    seen = 0
    for changed in flips(data):
        try:
            value = unsealed(changed)
        except ValueError:
            seen += 1
        else:  # in the name of the checksum, which then is one more entry
            assert value.items() >= VALUE.items()
    assert seen > 0.9 * 3 * len(data)


@pytest.mark.parametrize("left", [0, 1, 20, -1, -9])
def test_json_that_is_cut_is_refused(left, tmp_path):
    write_json(tmp_path / "a.json", VALUE)
    (tmp_path / "a.json").write_bytes((tmp_path / "a.json").read_bytes()[:left])
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")
    with pytest.raises(OSError):
        read_json(tmp_path / "b.json")


def test_json_from_before_there_were_checksums_is_read():
    assert unsealed(json.dumps(VALUE)) == VALUE and unsealed("[1]") == [1]


def test_a_line_with_any_flipped_bit_or_cut_is_refused():
    line = sealed_line(b'{"index": 3}\n')
    assert unsealed_line(line) == b'{"index": 3}\n'
    assert all(unsealed_line(changed) is None for changed in flips(line))
    assert all(unsealed_line(line[:end]) is None for end in range(len(line)))
    assert unsealed_line(b'{"index": 3}\n') is None


def test_a_folder_is_whole_as_it_was_written_and_no_other_way(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    files = {"one": b"some bytes" * 50, "two": b"", "three.json": b"{}"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert not is_whole(folder) and not is_whole(folder, closely=False)
    seal_folder(folder)
    assert is_whole(folder) and is_whole(folder, closely=False) and not is_whole(tmp_path / "b")
    for name in ("one", "three.json"):
        for changed in flips(files[name]):
            (folder / name).write_bytes(changed)
            assert not is_whole(folder) and is_whole(folder, closely=False)
        for other in (files[name][:-1], files[name] + b"x", b""):
            (folder / name).write_bytes(other)
            assert not is_whole(folder) and not is_whole(folder, closely=False)
        (folder / name).write_bytes(files[name])
        assert is_whole(folder)
    for name in (*files, SEAL):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        assert not is_whole(folder, closely=False)
        (folder / name).write_bytes(data)
