"""Values of any type as lines that every reader of JSON takes."""

import datetime
import json
import uuid
from collections import namedtuple
from decimal import Decimal
from types import MappingProxyType

import numpy as np
import pytest
import torch

from callbacks.artifacts.json_lines import json_line


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(row):
    line = json_line(row)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    return json.loads(line, parse_constant=refuse)


VALUES = {
    "datetime": (datetime.datetime(2024, 1, 2, 3, 4, 5, 6), "2024-01-02T03:04:05.000006"),
    "with a zone": (datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), "2024-01-02T00:00:00+00:00"),
    "date": (datetime.date(2024, 1, 2), "2024-01-02"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "duration": (datetime.timedelta(days=1, seconds=5), "1 day, 0:00:05"),
    "decimal": (Decimal("12345678901234567890.10"), "12345678901234567890.10"),
    "bytes of text": ("é".encode(), "é"),
    "bytes": (b"\xff\x00\x01", "/wAB"),
    "NaN": (float("nan"), None),
    "infinities": ([float("inf"), -float("inf"), 1.5], [None, None, 1.5]),
    "numpy": ([np.float32("nan"), np.float64("inf"), np.int64(3), np.bool_(True)], [None, None, 3, True]),
    "array": (np.array([[1.0, np.nan]]), [[1.0, None]]),
    "numpy date": (np.datetime64("2024-01-02T03:04"), "2024-01-02T03:04:00"),
    "tensor": (torch.tensor([1.5, float("nan")]), [1.5, None]),
    "nested": ({"a": [{"b": (Decimal("1.5"), {"c": b"d"})}]}, {"a": [{"b": ["1.5", {"c": "d"}]}]}),
    "keys": ({1: "a", None: "b", b"c": "d", (1, 2): "e", 1.5: "f"},
             {"1": "a", "null": "b", "c": "d", "[1, 2]": "e", "1.5": "f"}),
    "map of arrow": ([("a", 1), ("b", None)], [["a", 1], ["b", None]]),
    "set": ({3}, [3]),
    "named tuple": (namedtuple("Pair", "a b")(1, b"x"), [1, "x"]),
    "read-only": (MappingProxyType({"a": 1}), {"a": 1}),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "huge integer": (10**30, 10**30),
    "half a character": ("\ud83d", "\ud83d"),
    "line breaks": ("a\n\u2028b", "a\n\u2028b"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_each_type(name):
    value, written = VALUES[name]
    assert read({"value": value, "reward": 0.5}) == {"value": written, "reward": 0.5}


def test_what_is_nested_too_deeply():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    written = read({"row": {"deep": deep, "reward": 0.5}})["row"]
    assert written["reward"] == 0.5
    levels = 0
    while written["deep"] is not None:
        written, levels = {"deep": written["deep"][0]}, levels + 1
    assert levels == 99
