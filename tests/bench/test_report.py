"""Tables, verdicts and JSON."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from daxfs.bench import chart, report
from daxfs.bench.report import Comparison, Target, format_number

ROWS = [
    Comparison("whole machine", "time for each page", "us", 1.08, 1.2),
    Comparison("whole machine", "Rss within 1 s", "kB", 1048576, 0),
    Comparison("cgroup", "time for each page", "us", 1.7, None),
]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (1048576, "1,048,576"), (1.0849, "1.08"), (0.0042, "0.0042"), (3, "3")],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_ratio_is_new_over_old_and_nothing_where_old_is_nothing() -> None:
    assert [row.ratio for row in ROWS] == [pytest.approx(1.2 / 1.08), 0, None]
    assert report.ratio(0, 5) is None


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [(1.15, 1.15, "pass"), (1.16, 1.15, "FAIL"), (None, 1.15, "skipped"), (2.0, None, "reported")],
)
def test_verdict(value: float | None, limit: float | None, verdict: str) -> None:
    assert Target("name", "", value, "", limit).verdict == verdict


def test_comparison_table_is_markdown_without_a_terminal() -> None:
    text = io.StringIO()
    report.print_comparisons(Console(file=text, width=120), "Title", ROWS)
    lines = [line for line in text.getvalue().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["whole machine", "", "", "", ""]
    assert cells[4] == ["Rss within 1 s", "kB", "1,048,576", "0", "0"]
    assert cells[6] == ["time for each page", "us", "1.70", "-", "-"]


def test_target_table_shows_value_limit_and_verdict() -> None:
    text = io.StringIO()
    rows = [Target("pages", "1.2 / 1.0 us", 1.2, "", 1.15), Target("rest", "none", None, "kB", 0)]
    report.print_targets(Console(file=text, width=120), "Title", rows)
    assert "FAIL" in text.getvalue()
    assert "skipped" in text.getvalue()


def test_json_holds_the_ratio(tmp_path: Path) -> None:
    report.write_json(tmp_path / "out.json", {"rows": [row.as_json() for row in ROWS]})
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows[1] == {
        "scope": "whole machine",
        "measure": "Rss within 1 s",
        "unit": "kB",
        "old": 1048576,
        "new": 0,
        "ratio": 0,
    }


def test_chart_is_a_png(tmp_path: Path) -> None:
    chart.draw(tmp_path / "out.png", ROWS, "a machine")
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_steps_are_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with report.steps(2) as progress:
        progress.step("one")
        progress.step("two")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["[1/2] one", "[2/2] two"]
    assert captured.out == ""
