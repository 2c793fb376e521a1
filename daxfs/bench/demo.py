"""The main job, side by side: read a 1 GiB hole through mmap the old way and the new one.

The same image is mounted with ``dax=never`` (hole pages stay in the page cache, the old method)
and with ``dax=always``, in turns, after a warm-up of the machine's memory and one round that does
not count. Each round reads the hole in order, on the whole machine and in a memory cgroup, lets
fio read it in order and at random, and stores into a part of it. The table shows medians.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

import daxfs
from daxfs.bench import chart, report
from daxfs.bench.cgroup import MemoryCgroup, memory_cgroup, why_no_cgroup
from daxfs.bench.fio import RANDOM_BYTES, fio_read
from daxfs.bench.machine import (
    anonymous_kb,
    describe,
    drop_page_cache,
    page_cache_kb,
    warm_memory,
    watch,
)
from daxfs.bench.reader import ReadPass
from daxfs.bench.workspace import (
    Mount,
    exit_on_trouble,
    interruptible,
    make_hole,
    make_image,
    read_hole,
    workspace,
    write_hole,
)

OLD, NEW = "never", "always"
HOLE_BYTES = 1 << 30
WRITE_BYTES = 16 << 20
CGROUP_BYTES = 256 << 20
IMAGE_SIZE = "2G"

_MACHINE = "mmap, in order, whole machine"
_CGROUP = "mmap, in order, 256 MiB cgroup"
_FIO = "fio, mmap, in order"
_FIO_RANDOM = "fio, mmap, at random (32 MiB)"
_WRITE = "stores into 16 MiB of the hole"
_TIME, _CACHE = "time for each page", "page-cache growth of the machine"
_STEPS = (_MACHINE, _CGROUP, _FIO, _FIO_RANDOM, _WRITE)


@dataclass
class Figures:
    """All that was measured: for each mode, (scope, measure, unit) -> a figure for each round."""

    values: dict[str, dict[tuple[str, str, str], list[float]]] = field(
        default_factory=lambda: {OLD: defaultdict(list), NEW: defaultdict(list)}
    )
    smaps: dict[str, str] = field(default_factory=dict)

    def add(self, mode: str, scope: str, measure: str, unit: str, value: float) -> None:
        """One figure of one round."""
        self.values[mode][scope, measure, unit].append(value)

    def comparisons(self) -> list[report.Comparison]:
        """The medians, in the order in which the measures came, scopes together."""
        keys = list(dict.fromkeys([*self.values[OLD], *self.values[NEW]]))
        keys.sort(key=lambda key: _STEPS.index(key[0]))
        return [
            report.Comparison(*key, *(self._median(mode, key) for mode in (OLD, NEW)))
            for key in keys
        ]

    def _median(self, mode: str, key: tuple[str, str, str]) -> float | None:
        values = self.values[mode].get(key)
        return statistics.median(values) if values else None


class Round:
    """One mount in one mode and everything that is measured on it."""

    def __init__(self, mode: str, mount: Mount, figures: Figures) -> None:
        self.mode = mode
        self.mount = mount
        self.figures = figures
        self.hole = mount.point / "hole"
        make_hole(self.hole, HOLE_BYTES)
        self.blocks_at_start = mount.stat().blocks_used

    def add(self, scope: str, measure: str, unit: str, value: float) -> None:
        """Note a figure of this mode."""
        self.figures.add(self.mode, scope, measure, unit, value)

    def add_pass(self, scope: str, result: ReadPass) -> None:
        """The figures of a reader."""
        self.add(scope, _TIME, "us", result.us_per_page)
        self.add(scope, "Rss at the end of the pass", "kB", result.rss_end_kb)
        self.add(scope, "Rss within 1 s", "kB", result.rss_settled_kb)

    def read(self) -> None:
        """The reader on the whole machine."""
        daemon = self.mount.stat().daemon_pid
        anonymous_before = anonymous_kb(daemon)
        drop_page_cache(self.hole)
        with watch(page_cache_kb) as cache:
            result = read_hole(self.hole)
        self.add_pass(_MACHINE, result)
        self.add(_MACHINE, _CACHE, "kB", cache.growth)
        self.figures.smaps[self.mode] = result.smaps
        self.add(_MACHINE, "daemon memory growth", "kB", anonymous_kb(daemon) - anonymous_before)
        self.add_index(_MACHINE)

    def add_index(self, scope: str) -> None:
        """Index entries and blocks as they are now."""
        stat = self.mount.stat()
        self.add(scope, "index entries", "", sum(stat.entries.values()))
        self.add(scope, "image blocks used", "", stat.blocks_used - self.blocks_at_start)

    def read_in_cgroup(self, group: MemoryCgroup) -> None:
        """The reader where memory is short."""
        drop_page_cache(self.hole)
        self.add_pass(_CGROUP, read_hole(self.hole, group=group))
        peak = group.peak_bytes()
        if peak is not None:
            self.add(_CGROUP, "peak memory of the cgroup", "kB", peak // 1024)
        self.add(_CGROUP, "times the limit was hit", "", group.limit_hits())

    def fio(self, scope: str, pattern: str, io_bytes: int | None) -> None:
        """A fio job."""
        drop_page_cache(self.hole)
        with watch(page_cache_kb) as cache:
            time_us = fio_read(self.hole, pattern, io_bytes)
        self.add(scope, _TIME, "us", time_us)
        self.add(scope, _CACHE, "kB", cache.growth)

    def write(self) -> None:
        """Stores into a part of the hole."""
        drop_page_cache(self.hole)
        self.add(_WRITE, _TIME, "us", write_hole(self.hole, WRITE_BYTES))
        self.add_index(_WRITE)


def run_rounds(rounds: int, folder: Path, progress: report.Steps, cgroups: bool) -> Figures:
    """Measure *rounds* rounds of both modes after one that does not count."""
    image, point = folder / "image", folder / "mnt"
    make_image(image, IMAGE_SIZE)
    figures = Figures()
    for number in range(rounds + 1):
        if number == 1:
            figures = Figures()
        name = f"round {number} of {rounds}" if number else "warm-up round"
        for mode in (OLD, NEW):

            def step(scope: str, name: str = name, mode: str = mode) -> None:
                progress.step(f"{name}, dax={mode}: {scope}")

            with Mount(image, point, f"dax={mode}") as mount:
                _one_round(Round(mode, mount, figures), step, cgroups)
    return figures


def _one_round(current: Round, step: Callable[[str], None], cgroups: bool) -> None:
    step(_MACHINE)
    current.read()
    if cgroups:
        step(_CGROUP)
        with memory_cgroup(CGROUP_BYTES) as group:
            current.read_in_cgroup(group)
    step(_FIO)
    current.fio(_FIO, "read", None)
    step(_FIO_RANDOM)
    current.fio(_FIO_RANDOM, "randread", RANDOM_BYTES)
    step(_WRITE)
    current.write()
    current.hole.unlink()


def demo(out: Path, rounds: int) -> None:
    """Measure, print, write the files."""
    no_cgroup = why_no_cgroup()
    scopes = len(_STEPS) - (no_cgroup is not None)
    with (
        interruptible(),
        workspace() as folder,
        report.steps(1 + 2 * (rounds + 1) * scopes) as progress,
    ):
        progress.step("touching the machine's memory, which costs more the first time")
        warm_memory()
        figures = run_rounds(rounds, folder, progress, no_cgroup is None)
    rows = figures.comparisons()
    console = report.console()
    for mode in (OLD, NEW):
        console.print(f"The reader's smaps entry, dax={mode}:", style="bold")
        console.print(figures.smaps[mode], markup=False)
    title = f"Reading a 1 GiB hole, medians of {rounds} interleaved rounds"
    report.print_comparisons(console, title, rows)
    if no_cgroup:
        console.print(f"No figures from inside a memory cgroup: {no_cgroup}.", markup=False)
    out.mkdir(parents=True, exist_ok=True)
    machine = describe()
    report.write_json(
        out / "demo.json",
        {
            "machine": machine,
            "daxfs": daxfs.__version__,
            "rounds": rounds,
            "no_cgroup": no_cgroup,
            "rows": [
                {
                    **row.as_json(),
                    **{
                        f"all_{mode}": figures.values[mode].get((row.scope, row.measure, row.unit))
                        for mode in (OLD, NEW)
                    },
                }
                for row in rows
            ],
            "smaps": figures.smaps,
        },
    )
    in_order = [row for row in rows if row.scope in (_MACHINE, _CGROUP, _FIO)]
    written = [out / "demo.json"]
    if chart.available():
        written.append(out / "demo.png")
        chart.draw(written[-1], in_order, machine)
    else:
        console.print("No chart: matplotlib (the extra 'plot') is not installed.")
    console.print(f"Machine: {machine}", markup=False)
    console.print(f"Written: {', '.join(map(str, written))}", markup=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("daxfs-demo"),
    show_default=True,
    help="Folder for demo.json and demo.png.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds that count."
)
def main(out: Path, rounds: int) -> None:
    """Read a 1 GiB hole through mmap with dax=never and with dax=always, and compare."""
    with exit_on_trouble("demo"):
        demo(out, rounds)


if __name__ == "__main__":
    main()
