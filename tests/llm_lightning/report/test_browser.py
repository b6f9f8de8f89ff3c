"""The page in a real browser, where there is one: no script fails, nothing is wider than a phone, and it prints."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from llm_lightning.report.page import write_report
from tests.llm_lightning.evaluation.folders import write_evaluation
from tests.llm_lightning.report.folders import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1200,1000",
]  # fmt: skip

# What is measured is put into the title, which --dump-dom shows.
PROBE = """
<iframe id="page" style="width:390px;height:900px"></iframe>
<script>
const frame = document.getElementById("page");
frame.srcdoc = PAGE;
frame.onload = () => {
  const page = frame.contentDocument, svg = page.querySelector(".chart > svg"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 12, clientY: box.top + 20}));
  const tip = page.querySelector(".tip");
  document.title = `wide ${page.documentElement.scrollWidth} tip ${tip && tip.innerText.replaceAll("\\n", "; ")}`;
};
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture
def page(tmp_path):
    folders = [write_run(tmp_path / "a run with a rather long name"), write_run(tmp_path / "two", lr=0.01)]
    for folder in folders:
        write_evaluation(folder / "evaluation" / "last", {"arc_challenge_of_a_long_name": np.array([1.0, 0, 1])})
    write_report(folders, tmp_path / "report.html")
    return tmp_path / "report.html"


def browse(tmp_path: Path, *words: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_phone_shows_it_and_a_curve_tells_its_values(page, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("PAGE", json.dumps(page.read_text()).replace("</", "<\\/")))
    text = browse(tmp_path, "--dump-dom", probe.as_uri())
    title = text.partition("<title>")[2].partition("</title>")[0]
    assert title.startswith("wide 390 "), text[:500]
    assert "6,144 tokens; two, training 2.25; two, validation 2.5" in title.replace(
        "a run with a rather long name", "two"
    )


def test_it_prints(page, tmp_path):
    printed = tmp_path / "report.pdf"
    browse(tmp_path, f"--print-to-pdf={printed}", page.as_uri())
    assert printed.read_bytes().startswith(b"%PDF")
