"""The report as a program and a browser read it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from datamodules.synthetic.filters import ExactDuplicates, Format, Length, Threshold
from datamodules.synthetic.report import histogram, write_report
from tests.datamodules.synthetic.records import answers, candidates, funnel_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> & </pre> {{ 7 * 7 }}"
)


@pytest.fixture
def funnel(tmp_path):
    texts = [f"Answer number {i}: {' '.join(map(str, range(i, i + 5 + i % 70)))}." for i in range(300)]
    records = answers(*texts, HOSTILE, "", "As an AI language model, I have no opinion.")
    records += candidates(("Question 1", texts[1]), generator="paraphrase")
    return funnel_of(tmp_path, [Format(), Length(Threshold(min=5, max=60)), ExactDuplicates()], records)


@pytest.fixture
def page(tmp_path, funnel):
    return write_report(tmp_path / "run", funnel, {"model": HOSTILE, "temperature": 0.8})


class Outline(HTMLParser):
    """The tags of a page, and which are left open."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_json_says_what_the_funnel_says(page, funnel):
    statistics = json.loads((page.parent / "report.json").read_text())
    assert (statistics["num_generated"], statistics["num_kept"]) == (304, funnel.num_kept)
    assert [stage["name"] for stage in statistics["stages"]] == ["format", "answer_words", "exact_duplicates"]
    assert statistics["stages"][0]["dropped"] == {"empty answer": 1, "refusal": 1}
    assert statistics["stages"][1]["bounds"] == [5, 60]
    assert statistics["stages"][2]["dropped"] == {"said before": 1}
    assert {each["name"]: each["num_generated"] for each in statistics["generators"]} == {
        "self_instruct": 303,
        "paraphrase": 1,
    }
    lengths = statistics["answer_characters"]
    assert sum(lengths["all"]) == 304 and sum(lengths["kept"]) == funnel.num_kept
    assert statistics["about"] == {"model": HOSTILE, "temperature": 0.8}
    assert len(statistics["samples"]) == 6 and all(each["provenance"]["generator"] for each in statistics["samples"])


def test_the_page_is_one_file_in_which_texts_are_texts(page):
    text = page.read_text()
    outline = Outline(text)
    assert not outline.open
    assert not outline.tags & {"script", "img", "iframe", "link", "object"}
    assert not re.search(r"https?://|src=|@import|url\(", re.sub(r"&lt;.*?&gt;", "", text))
    assert "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("filters", [[], [Length(Threshold(min=9000))]], ids=["no filters", "nothing kept"])
def test_a_report_of_extremes(tmp_path, filters):
    records = answers("one", "two words") if filters else []
    page = write_report(tmp_path, funnel_of(tmp_path, filters, records), {})
    assert not Outline(page.read_text()).open
    assert "No record passed all filters." in page.read_text()


def test_a_report_that_fails_leaves_the_old_one(tmp_path, funnel):
    write_report(tmp_path, funnel, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(TypeError):
        write_report(tmp_path, funnel, {"not": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_ends_of_a_histogram_hold_the_tails():
    values = np.array([*np.linspace(0, 1, 1000), 1e6, np.nan], np.float32)
    drawn = histogram(values, np.arange(1002) < 500, bounds=(-np.inf, 0.7))
    assert sum(drawn["all"]) == 1001 and sum(drawn["kept"]) == 500
    assert drawn["edges"][-1] < 2 and drawn["all"][-1] > 1
    assert histogram(np.zeros(10), np.ones(10, bool)) is None


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it(page, tmp_path):
    def chromium(*arguments: str) -> str:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dom = chromium("--dump-dom", "--virtual-time-budget=2000")
    assert "<title>Synthetic data" in dom  # no text of a record ran as a script
    assert "document.title" in dom
    assert Outline(dom).tags >= {"svg", "table", "article"}
    chromium(f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,900", "--hide-scrollbars")
    from matplotlib.image import imread

    picture = imread(tmp_path / "page.png")[..., :3]
    green = np.array([0x2F, 0x7D, 0x5B]) / 255
    assert picture.shape[:2] == (900, 1000)
    assert (np.abs(picture - green).max(-1) < 0.02).mean() > 0.01  # bars and charts are drawn
