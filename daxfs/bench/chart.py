"""The demo's result as a picture: time for each page, and memory left behind."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from daxfs.bench.report import Comparison, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OLD, _NEW = "#b0563c", "#2f7f86"
_BAR = 0.38


def _bars(axes: "Axes", rows: Sequence[Comparison], title: str, scale: float) -> None:
    for shift, color, label, values in (
        (-_BAR / 2, _OLD, "dax=never (old)", [row.old or 0 for row in rows]),
        (_BAR / 2, _NEW, "dax=always (new)", [row.new or 0 for row in rows]),
    ):
        places = [number + shift for number in range(len(rows))]
        scaled = [value / scale for value in values]
        bars = axes.barh(places, scaled, _BAR, color=color, label=label)
        axes.bar_label(
            bars, [format_number(round(value, 2)) for value in scaled], padding=3, fontsize=8
        )
    axes.set_yticks(range(len(rows)), [f"{row.measure}\n{row.scope}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def available() -> bool:
    """Whether matplotlib, the extra ``plot``, is installed."""
    return find_spec("matplotlib") is not None


def draw(path: Path, rows: Sequence[Comparison], subtitle: str) -> None:
    """Draw the rows measured in us and in kB into the PNG file *path*; needs `available`."""
    from matplotlib.figure import Figure

    times = [row for row in rows if row.unit == "us"]
    memory = [row for row in rows if row.unit == "kB"]
    figure = Figure(figsize=(11, 1.6 + 0.55 * max(len(times), len(memory))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, times, "us for each 4 KiB page", 1)
    _bars(right, memory, "MiB", 1024)
    right.legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle(f"Reading a 1 GiB hole in order\n{subtitle}", fontsize=11)
    figure.savefig(path, dpi=120)
