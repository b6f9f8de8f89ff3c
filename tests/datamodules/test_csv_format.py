"""Tables of text: every row is right, or is refused by its line."""

import csv
import io
import random
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit


def read(path: Path, text: str | bytes) -> list:
    """(line, record or reason) of each row."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = records(Unit(str(path), "csv", ""))
    return [(line, row.reason if isinstance(row, Bad) else row) for line, row in rows]


def good(rows: list) -> list:
    return [list(row.values()) for _, row in rows if isinstance(row, dict)]


def bad(rows: list) -> dict[int, str]:
    return {line: row for line, row in rows if isinstance(row, str)}


ROWS = {
    # text: (the good rows, the lines of the bad ones and what is said of each)
    "text\nHello, world and all\nplain line\nOne, two, three\n": (
        [["plain line"]], {2: "2 fields, and the header 1", 4: "3 fields"},
    ),
    'question,answer\nWhat now,Do it, but slowly\nshort\n"b","c"\n': (
        [["b", "c"]], {2: "3 fields, and the header 2; put fields that hold a comma into", 3: "1 fields"},
    ),
    'q,a,s\nQ1?,A1.,u\n"Q2 open?,A2.,u\nQ3?,A3.,u\nQ4?,"A4, sure.",u\nQ5?,A5.,u\n': (
        [["Q1?", "A1.", "u"], ["Q3?", "A3.", "u"], ["Q4?", "A4, sure.", "u"], ["Q5?", "A5.", "u"]],
        {3: "a quote opens a field of this row, and the next one (in line 5) does not end"},
    ),
    'q,a\n"Q1 open,A1\nQ2,A2\nQ3,A3\n': ([["Q2", "A2"], ["Q3", "A3"]], {2: "opens in this row and never closes"}),
    'q,a\n"He said \\"no\\"",x\nb,c\n': ([["b", "c"]], {2: "does not end the field"}),
    'q,a\n"one" two,x\nb,c\n': ([["b", "c"]], {2: "does not end the field"}),
    'q,a\nb, "c"\nd,e\n': ([["d", "e"]], {2: "a space stands before a quote"}),
    'q,a\nsaid "x" twice,"two\n\nlines, ""quoted"""\n\n  \nb,\n': (
        [['said "x" twice', 'two\n\nlines, "quoted"'], ["b", ""]], {},
    ),
    "question;answer\nWhat, now?;Do it, slowly\na;b\n": ([["What, now?", "Do it, slowly"], ["a", "b"]], {}),
    "question\tanswer\nWhat, now?\tyes\nno\n": ([["What, now?", "yes"]], {3: "1 fields, and the header 2"}),
    "question|answer|n\na|b, c|1\n": ([["a", "b, c", "1"]], {}),
    "sep=;\r\nq;a\r\nb,c;d\r\n": ([["b,c", "d"]], {}),
    "q;a,b\nx;y,z\n1;2,3\n4,5;6\n": ([["x;y", "z"], ["1;2", "3"], ["4", "5;6"]], {}),
    "q,a\r\nb,c\rd,e\r": ([["b", "c"], ["d", "e"]], {}),
}  # fmt: skip


@pytest.mark.parametrize("text", ROWS)
def test_a_row_has_the_header_s_fields_or_is_named_by_its_line(text, tmp_path):
    rows = read(tmp_path / "a.csv", text)
    right, wrong = ROWS[text]
    assert good(rows) == right
    assert list(bad(rows)) == list(wrong)
    assert all(words in bad(rows)[line] for line, words in wrong.items())


def test_a_tsv_keeps_its_tabs_and_one_with_commas_is_seen(tmp_path):
    assert good(read(tmp_path / "a.tsv", 'q\ta\n1, 2\tsay "x"\n')) == [["1, 2", 'say "x"']]
    assert good(read(tmp_path / "b.tsv", "q,a\n1,2\n")) == [["1", "2"]]
    assert bad(read(tmp_path / "c.tsv", 'q\ta\n"x" y\tz\n')) == {
        2: "a quote opens a field of this row, and the next one does not end the field; close it, or write a quote "
        'within a quoted field as ""'
    }


HEADERS = {
    "two columns are called 'a'": b"a,b,a\n1,2,3\n",
    "a.csv:2: a quote opens in this row and never closes": b'\n"a,b\n1,2\n',
    "is UTF-16, not UTF-8; convert it with `iconv -f utf-16": "q,a\nb,c\n".encode("utf-16"),
    "is UTF-16, not": "q,a\nb,c\n".encode("utf-16-be"),
    "is UTF-32, not": "q,a\nb,c\n".encode("utf-32"),
    "a .zip archive or a spreadsheet": b"PK\x03\x04 and more",
    "a.csv:1: byte 0xf1 is not UTF-8": "año,b\n1,2\n".encode("latin-1"),
}


@pytest.mark.parametrize("words", HEADERS)
def test_a_file_without_a_header_that_can_be_read_is_refused(words, tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.csv", HEADERS[words])
    assert words in str(error.value) and str(tmp_path / "a.csv") in str(error.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_a_csv_writer_writes_is_read_as_it_was(delimiter, tmp_path):
    rng = random.Random(0)
    letters = ["a", "é", " ", '"', ",", ";", "\t", "|", "\n", "\r\n", "'", "🫀"]
    table = [["one", "two", "three"]]
    table += [["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(3)] for _ in range(400)]
    table = [[cell if not cell.startswith(' "') else "x" for cell in row] for row in table]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(table)
    assert good(read(tmp_path / "a.csv", buffer.getvalue())) == table[1:]


def test_a_row_too_long_to_be_held_is_named_and_the_next_ones_are_read(tmp_path, monkeypatch):
    from datamodules.sources import text_files

    monkeypatch.setattr(text_files, "LONGEST_RECORD", 1000)
    text = "q,a\n1,2\n" + "x" * 5000 + ',y\n3,4\n"open,5\n' + "6,7\n" * 300
    rows = read(tmp_path / "a.csv", text)
    assert list(bad(rows)) == [3, 5] and all("is longer than" in words for words in bad(rows).values())
    assert good(rows) == [["1", "2"], ["3", "4"], *[["6", "7"]] * 300]
