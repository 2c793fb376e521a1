"""daxfs against its targets: what ``scripts/bench`` prints.

Every figure is the median of interleaved repeats on warm memory, after a run that does not count.
"""

import itertools
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

import daxfs
from daxfs.bench import report, unprivileged
from daxfs.bench.cgroup import why_no_cgroup
from daxfs.bench.machine import describe, warm_memory
from daxfs.bench.passes import (
    HOLE_BYTES,
    Figures,
    Pair,
    Samples,
    as_ordinary_user,
    in_daemon,
    preads,
    repeat,
)
from daxfs.bench.report import Target, format_number
from daxfs.bench.workspace import (
    Mount,
    exit_on_trouble,
    interruptible,
    make_hole,
    make_image,
    workspace,
)
from daxfs.pmem.image import Image
from daxfs.units import PMD_SIZE

REPEATS_MIN = 5
_IMAGE_SIZE = "256M"
_MOUNTS = {"never": "dax=never", "always": "dax=always", "sleeping": "dax=always,poll=0"}


def _medians(samples: Samples) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def _ratio(name: str, limit: float, over: str, under: str, figures: dict[str, float]) -> Target:
    """A target for figure *over* / figure *under*, both in us."""
    new, old = figures.get(over), figures.get(under)
    if new is None or old is None:
        return Target(name, "not measured here", None, "", limit)
    measured = f"{format_number(new)} / {format_number(old)} us"
    return Target(name, measured, report.ratio(old, new), "", limit)


def machine_targets(figures: dict[str, float]) -> list[Target]:
    """The rows of a pass on the whole machine, from its medians."""
    pmd_wanted = HOLE_BYTES // PMD_SIZE
    entries_off = abs(figures["pmd zero"] - pmd_wanted) + figures["entries"] - figures["pmd zero"]
    return [
        Target(
            "Rss of the mapping within 1 s after the pass",
            f"after {figures['settle ms']:.0f} ms",
            figures["rss kB"],
            "kB",
            0,
        ),
        Target(
            "page cache held for holes during the pass",
            f"daemon's count {format_number(figures['held MiB'])},"
            f" machine {format_number(figures['cache MiB'])} MiB",
            max(figures["held MiB"], figures["cache MiB"]),
            "MiB",
            16,
        ),
        Target("daemon memory growth over the pass", "", figures["daemon kB"] / 1024, "MiB", 4),
        Target(
            f"index entries other than {pmd_wanted} PMD zero entries",
            f"{format_number(figures['pmd zero'])} PMD zero of {format_number(figures['entries'])}",
            entries_off,
            "",
            0,
        ),
        _ratio("us for each page, dax=always / dax=never", 1.15, "always us", "never us", figures),
        _ratio("us for each page, dax=always / tmpfs", 0.75, "always us", "tmpfs us", figures),
        Target("image blocks allocated by reading", "", figures["blocks"], "", 0),
    ]


def cgroup_targets(figures: dict[str, float]) -> list[Target]:
    """The row of a reader in a 256 MiB memory cgroup."""
    row = _ratio(
        "reader in a 256 MiB cgroup: us for each page, dax=always / dax=never",
        0.75,
        "always us",
        "never us",
        figures,
    )
    if row.value is None:
        return [row]
    detail = (
        f"{row.measured};"
        f" peak {figures['always peak MiB']:.0f} / {figures['never peak MiB']:.0f} MiB,"
        f" limit hit {figures['always hits']:,.0f} / {figures['never hits']:,.0f} times"
    )
    return [Target(row.name, detail, row.value, "", row.limit)]


def load_hole_targets(figures: dict[str, float]) -> list[Target]:
    """The rows of dax_load_hole inside the daemon."""
    return [
        _ratio(
            "dax_load_hole for each page, shared zero page / kept pages",
            0.25,
            "new us",
            "old us",
            figures,
        ),
        Target(
            "memory for 1 GiB of hole inside the daemon",
            f"kept pages {figures['old MiB']:,.0f} MiB",
            figures["new KiB"],
            "KiB",
            64,
        ),
    ]


def pread_targets(figures: dict[str, float]) -> list[Target]:
    """The row of small reads, with and without a daemon that polls."""
    name = "4 KiB pread p50 of an uncached page, polling on / off"
    return [_ratio(name, 0.8, "on us", "off us", figures)]


def user_targets(figures: dict[str, float]) -> list[Target]:
    """The rows of an ordinary user."""
    name = "ordinary user: Rss within 1 s after the pass"
    if not figures:
        return [Target(name, "not measured here", None, "kB", 0)]
    return [
        Target(name, "", figures["rss kB"], "kB", 0),
        Target("ordinary user: time for each page", "", figures["us"], "us", None),
    ]


_PARTS: dict[str, Callable[[dict[str, float]], list[Target]]] = {
    "whole machine": machine_targets,
    "cgroup": cgroup_targets,
    "load_hole": load_hole_targets,
    "pread": pread_targets,
    "ordinary user": user_targets,
}


class Suite:
    """One run of the benchmark: the samples of each part, and why a part was left out."""

    def __init__(self, folder: Path, repeats: int, progress: report.Steps) -> None:
        self._folder = folder
        self._repeats = repeats
        self._progress = progress
        self.samples: dict[str, Samples] = {part: {} for part in _PARTS}
        self.skipped: dict[str, str] = {}

    @staticmethod
    def step_count(repeats: int) -> int:
        """How many steps ``measure`` reports."""
        return 3 + 4 * (repeats + 1)

    def measure(self) -> None:
        """Measure everything."""
        self._progress.step("touching the machine's memory, which costs more the first time")
        warm_memory()
        with ExitStack() as stack:
            mounts = {}
            for name, options in _MOUNTS.items():
                image = self._folder / f"{name}.img"
                make_image(image, _IMAGE_SIZE)
                mounts[name] = stack.enter_context(Mount(image, self._folder / name, options))
                make_hole(mounts[name].point / "hole", HOLE_BYTES)
            pair = Pair(mounts["never"], mounts["always"], self._folder, self._tmpfs_has_room())
            self._repeat("whole machine", pair.whole_machine)
            self._repeat("whole machine", pair.held)
            reason = why_no_cgroup()
            if reason is None:
                self._repeat("cgroup", pair.in_cgroup)
            else:
                self.skipped["cgroup"] = reason
            sleeping, polling = (mounts[name].point / "hole" for name in ("sleeping", "always"))
            seeds = itertools.count()
            self._repeat("pread", lambda: preads(sleeping, polling, next(seeds)))
        self._progress.step("load_hole")
        self.samples["load_hole"] = in_daemon(self._repeats)
        self._progress.step("ordinary user")
        reason = unprivileged.why_not()
        if reason is None:
            folder = self._folder / "user"
            self.samples["ordinary user"] = as_ordinary_user(folder, self._repeats)
        else:
            self.skipped["ordinary user"] = reason

    def _repeat(self, part: str, one: Callable[[], Figures]) -> None:
        samples = repeat(one, self._repeats, lambda text: self._progress.step(f"{part}: {text}"))
        self.samples[part].update(samples)

    def _tmpfs_has_room(self) -> bool:
        space = os.statvfs(self._folder)
        room = space.f_bavail * space.f_frsize > HOLE_BYTES * 5 // 4
        with Image.open(str(self._folder / "never.img"), writable=False) as image:
            on_memory = image.on_memory
        if not (room and on_memory):
            self.skipped["tmpfs"] = f"{self._folder} is no tmpfs with room for 1.25 GiB"
        return room and on_memory

    def targets(self) -> list[Target]:
        """All rows of the table."""
        return [
            row
            for part, make_rows in _PARTS.items()
            for row in make_rows(_medians(self.samples[part]))
        ]


def bench(repeats: int, json_path: Path | None) -> bool:
    """Measure, print, and say whether every target was reached."""
    with (
        interruptible(),
        workspace() as folder,
        report.steps(Suite.step_count(repeats)) as progress,
    ):
        suite = Suite(folder, repeats, progress)
        suite.measure()
    rows = suite.targets()
    console = report.console()
    title = f"Sequential mmap read of a 1 GiB hole: medians of {repeats} interleaved repeats, warm"
    report.print_targets(console, title, rows)
    for part, reason in suite.skipped.items():
        console.print(f"Not measured, {part}: {reason}.", markup=False)
    machine = describe()
    console.print(f"Machine: {machine}", markup=False)
    if json_path:
        report.write_json(
            json_path,
            {
                "machine": machine,
                "daxfs": daxfs.__version__,
                "repeats": repeats,
                "targets": [row.as_json() for row in rows],
                "skipped": suite.skipped,
                "samples": suite.samples,
            },
        )
    return all(row.verdict != "FAIL" for row in rows)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON."
)
@click.option(
    "--repeats",
    type=click.IntRange(REPEATS_MIN),
    default=REPEATS_MIN,
    show_default=True,
    help="Repeats that count, for every figure.",
)
def main(json_path: Path | None, repeats: int) -> None:
    """Measure daxfs against its targets; exit code 1 when one is missed."""
    with exit_on_trouble("bench"):
        reached = bench(repeats, json_path)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
