"""The report is one file that shows in a real browser what its figures say, and runs nothing else.

Chromium earns its seconds: nothing else tells whether the page's own script works. Where there is
none, what the page holds without its script is tested still.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.simulate_report import dump_data
from tests.infra.browser import PROGRAM, open_browser

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&amp;$title'

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs chromium-headless-shell")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on five minutes with a rise that owned GPUs can't take, of two policies."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    command = ["simulate", "spike", "--load", "18", "--hours", "0.15", "--report", str(path)]
    command += ["--policy", "tidegate", "--policy", "static-peak", "--policy", "oracle"]
    found = CliRunner().invoke(app, command, catch_exceptions=False)
    assert found.exit_code == 0
    return path


class Reader(HTMLParser):
    """Collects a page's elements and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_the_page_needs_nothing_from_anywhere(page: Path) -> None:
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    assert not [tag for tag, attributes in reader.tags if {"src", "href"} & attributes.keys()]
    assert "default-src 'none'" in text
    assert re.findall(r"https?://[^\s\"]+", text) == ["http://www.w3.org/2000/svg"]


def test_figures_stand_in_the_page_without_its_script(page: Path) -> None:
    text = page.read_text()
    for policy in ("tidegate", "static-peak", "oracle"):
        assert f">{policy}<" in text
    assert "tidegate kept the promise for" in text


def test_names_that_look_like_markup_stay_text(tmp_path: Path) -> None:
    """A trace's name is its file's: what stands in it must not run, nor end the page's data."""
    trace = tmp_path / (HOSTILE.replace("/", " ") + ".csv")
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,20\n")
    path = tmp_path / "report.html"
    command = ["simulate", str(trace), "--policy", "tidegate", "--report", str(path)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    reader = Reader()
    reader.feed(path.read_text())
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in reader.tags]


def test_texts_in_the_data_cannot_end_their_element() -> None:
    dumped = dump_data({"why": HOSTILE})
    assert "<" not in dumped
    assert json.loads(dumped) == {"why": HOSTILE}


@needs_browser
async def test_a_browser_draws_every_chart_without_a_complaint(page: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as shown:
        await shown.open(page)
        titles = await shown.evaluate(
            "[...document.querySelectorAll('#charts figcaption b')].map((one) => one.textContent)"
        )
        assert titles == [
            "Demand and capacity",
            "Rented nodes",
            "Waiting",
            "Time to first token",
            "Missed the promise",
            "Cloud $ an hour",
            "Cloud $ so far",
        ]
        assert await shown.evaluate("document.querySelector('.demand').getTotalLength()") > 500
        assert await shown.evaluate("document.querySelectorAll('#nodes-table tbody tr').length") > 0
        assert shown.complaints == []
        assert shown.asked_for == [page.as_uri()]


@needs_browser
async def test_pointing_at_a_decision_shows_its_reasons(page: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as shown:
        await shown.open(page)
        x, y = await shown.evaluate(
            "(() => { const box = document.querySelector('.mark').getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + 60]; })()"
        )
        await shown.point(x, y)
        text = await shown.evaluate("document.getElementById('tip').innerText")
        first = await shown.evaluate("document.querySelector('#decisions-table .why').innerText")
        assert "cloud-l40s" in text
        assert first.splitlines()[0] in text
        assert shown.complaints == []


@needs_browser
async def test_keys_reach_the_decisions_and_are_read_aloud(page: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as shown:
        await shown.open(page)
        await shown.evaluate("document.getElementById('charts').focus()")
        await shown.press("d")
        assert "replicas" in await shown.evaluate("document.getElementById('readout').textContent")
        assert not await shown.evaluate("document.getElementById('tip').hidden")
        await shown.press("Escape")
        assert await shown.evaluate("document.getElementById('tip').hidden")


@needs_browser
async def test_another_policy_is_shown_when_it_is_chosen(page: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as shown:
        await shown.open(page, width=1000)
        await shown.evaluate("document.querySelector('input[value=static-peak]').click()")
        assert await shown.evaluate("document.getElementById('policy-name').innerText") == (
            "static-peak"
        )
        assert await shown.evaluate("document.querySelectorAll('#charts svg').length") == 7
        width = await shown.evaluate("document.documentElement.scrollWidth")
        assert width <= 1000
        assert shown.complaints == []


@needs_browser
async def test_dragging_across_a_chart_looks_closer(page: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as shown:
        await shown.open(page)
        y = await shown.evaluate("document.querySelector('#charts svg').getBoundingClientRect().y")
        await shown.point(400, y + 80, "mousePressed", button="left", clickCount=1)
        await shown.point(700, y + 80, button="left", buttons=1)
        await shown.point(700, y + 80, "mouseReleased", button="left", clickCount=1)
        assert not await shown.evaluate("document.getElementById('whole').hidden")
        await shown.evaluate("document.getElementById('whole').click()")
        assert await shown.evaluate("document.getElementById('whole').hidden")
