"""How results are shown: tables for people, JSON for programs, progress while it runs.

Progress goes to stderr: a bar for a person at a terminal, one line a step otherwise.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """A console; wide and without escapes when nobody sits at a terminal, or in CI."""
    result = Console(stderr=stderr, highlight=False)
    if result.is_terminal and not os.environ.get("CI"):
        return result
    return Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH, force_terminal=False)


def ratio(old: float | None, new: float | None) -> float | None:
    """new / old; None where it means nothing."""
    if old is None or new is None or not old:
        return None
    return new / old


def format_number(value: float | None) -> str:
    """A figure for a table: whole numbers with thousands separated, others with two digits."""
    if value is None:
        return "-"
    if (value == int(value) and abs(value) >= 1) or value == 0:
        return f"{int(value):,}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.4f}"


@dataclass(frozen=True)
class Comparison:
    """One measure of the old method (dax=never) and of the new one (dax=always)."""

    scope: str
    measure: str
    unit: str
    old: float | None
    new: float | None

    @property
    def ratio(self) -> float | None:
        """new / old; None where it means nothing."""
        return ratio(self.old, self.new)

    def as_json(self) -> dict[str, Any]:
        """This row for a JSON file."""
        return {**vars(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Target:
    """One thing to reach: *value* (with *unit*) must not be above *limit*; None: not measured."""

    name: str
    measured: str
    value: float | None
    unit: str
    limit: float | None

    @property
    def verdict(self) -> str:
        """``pass``, ``FAIL``, or why there is none."""
        if self.value is None:
            return "skipped"
        if self.limit is None:
            return "reported"
        return "pass" if self.value <= self.limit else "FAIL"

    def as_json(self) -> dict[str, Any]:
        """This row for a JSON file."""
        return {**vars(self), "verdict": self.verdict}


def print_table(
    out: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table; without a terminal in Markdown, so that it can be quoted.

    The first column is text on the left, the others are figures on the right.
    """
    style = box.SIMPLE_HEAD if out.is_terminal else box.MARKDOWN
    table = Table(box=style)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    with out.capture() as capture:
        out.print(table)
    out.print(title, style="bold", markup=False)
    for line in capture.get().splitlines():
        if line.strip():
            out.out(line.rstrip(), highlight=False)


def print_comparisons(out: Console, title: str, rows: Sequence[Comparison]) -> None:
    """The table of the demo: a heading line for each scope, its measures below."""
    lines: list[list[str]] = []
    scope = None
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            lines.append([scope, "", "", "", ""])
        lines.append(
            [f"  {row.measure}", row.unit, *map(format_number, (row.old, row.new, row.ratio))]
        )
    print_table(out, title, ("", "unit", "dax=never (old)", "dax=always (new)", "new / old"), lines)


def print_targets(out: Console, title: str, rows: Sequence[Target]) -> None:
    """The table of the benchmark: what was measured against what it must reach."""
    lines = [
        [
            row.name,
            row.measured,
            f"{format_number(row.value)} {row.unit}".rstrip() if row.value is not None else "-",
            f"<= {format_number(row.limit)}" if row.limit is not None else "-",
            row.verdict,
        ]
        for row in rows
    ]
    print_table(out, title, ("", "measured", "value", "target", ""), lines)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write *document* to *path*, readable for people too."""
    path.write_text(json.dumps(document, indent=2) + "\n")


class Steps:
    """Counts the steps of a run for whoever watches."""

    def __init__(self, total: int, out: Console, bar: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._out = out
        self._bar = bar
        self._task = bar.add_task("", total=total) if bar else None

    def step(self, text: str) -> None:
        """The step *text* begins; the one before it, if any, is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, completed=self._done)
        else:
            self._out.print(f"[{self._done + 1}/{self._total}] {text}", markup=False)
        self._done += 1


@contextmanager
def steps(total: int) -> Iterator[Steps]:
    """Show the progress of *total* steps."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield Steps(total, out, None)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        yield Steps(total, out, bar)
