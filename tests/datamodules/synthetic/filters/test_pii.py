import random
import time

import pytest

from benchmarks.planted_personal import LOOKALIKES, personal
from datamodules.synthetic.filters import PersonalData
from datamodules.synthetic.filters.pii import findings
from tests.datamodules.synthetic.records import answers, funnel_of, ids

KINDS = list(personal(random.Random(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_once(kind):
    rng = random.Random(kind)
    for _ in range(200):
        text = f"Use {personal(rng)[kind]}, please."
        assert findings(text) == [kind], text


@pytest.mark.parametrize("text", LOOKALIKES)
def test_lookalikes(text):
    assert findings(text) == []


@pytest.mark.parametrize(
    "text",
    ["Version 1.2.3.4 is out.", "See 10.0.0.1 and ::1.", "f(x)=x@y.T", "std::vector<int> a::b::c", "17:30:00-18:45:00"],
)
def test_what_is_public_and_nobodys(text):
    assert findings(text) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("4111 1111 1111 1111", "4111 1111 1111 1112"),
        ("378282246310005", "378282246310006"),
        ("GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 33"),
        ("ES9121000418450200051332", "ES9121000418450200051333"),
        ("078-05-1120", "000-05-1120"),
    ],
)
def test_check_digits(right, wrong):
    assert len(findings(f"It is {right}.")) == 1
    assert findings(f"It is {wrong}.") == []


def test_records_are_dropped_with_the_kind_as_reason(tmp_path):
    records = answers(
        "Write to jane.roe@mail.org or john@mail.org.", "Nothing here.", "-----BEGIN RSA PRIVATE KEY-----"
    )
    funnel = funnel_of(tmp_path, [PersonalData()], records)
    assert ids(funnel.kept()) == ["1"]
    assert funnel.stages[0].dropped == {"e-mail address": 1, "key": 1}
    assert funnel.stages[0].scores.tolist() == [2, 0, 1]


@pytest.mark.parametrize("text", ["a." * 50_000 + "@", "1 " * 50_000, "a:" * 50_000, "4" * 100_000, "+1-" * 30_000])
def test_no_text_takes_long(text):
    start = time.process_time()
    findings(text)
    assert time.process_time() - start < 2
