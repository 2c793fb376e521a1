"""The hunt for mutants: each must be killed, by the explorer or by a named test.

    hunt            kill mutants, on all processors
    coverage        which workloads run which sites
    table           docs/MUTANTS.md: who killed each mutant; tried first the next time

The explorer stops at the first state that fails. Where it cannot see a mutant, since nothing that
is visible depends on it or its states are too many, a test of the tests folder does (``BY_TESTS``).
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from daxfs.pmem.image import Image
from daxfs.pmem.persist import Domain, Observer, Persist
from daxfs.testing.jobs import processes
from daxfs.testing.mutants import Mutant
from daxfs.testing.mutated import VARIABLE
from daxfs.testing.outcome import Outcome
from daxfs.testing.sites import running
from daxfs.testing.stage import Ground
from daxfs.testing.trees import TREES, image_size
from daxfs.testing.walker import Walker
from daxfs.testing.workloads import ONE, workload

ROOT: Final = Path(__file__).parents[2]
"""The source tree, which holds the tests and the table."""
TABLE: Final = ROOT / "docs" / "MUTANTS.md"

_CHUNK: Final = "tests/fs/test_chunk_order.py::test_a_chunk_that_is"
_WORDS: Final = "tests/fs/test_state_words.py::test_"
_UNMOUNT: Final = f"{_WORDS}an_unmount_that_has_returned_is_on_the_medium"
_WRITEBACK: Final = (
    "tests/dax/test_writeback.py::test_dirty_pages_are_flushed_in_runs_fenced_and_become_clean"
)
_FAULT: Final = (
    "tests/dax/test_fault.py::test_a_write_over_a_zero_entry_announces_it_before_and_publishes_last"
)
BY_TESTS: Final = {
    "fs.blockmap.BlockMap.zero_out": (
        f"{_CHUNK}_zeroed_on_a_full_image_is_there_before_its_entry_counts"
    ),
    "fs.blockmap.BlockMap._write_huge tx.store:": (
        f"{_CHUNK}_written_whole_is_there_before_its_entry_counts"
    ),
    "fs.core.Core.report_corruption": f"{_WORDS}damage_that_was_met_is_on_the_medium",
    "fs.super.FileSystem._start f": f"{_WORDS}a_mount_that_has_returned_is_on_the_medium",
    "fs.super.FileSystem._store_clean store 3": _UNMOUNT,
    "fs.super.FileSystem._store_clean flush 2": _UNMOUNT,
    "fs.super.FileSystem._store_clean fence 2": _UNMOUNT,
    "fs.file.FileOperations._fence": (
        "tests/fs/test_file.py::test_fsync_and_sync_end_with_a_fence_behind_their_flushes"
    ),
    "dax.fault._write_fault": _FAULT,
    "dax.rw.Dax.writeback": _WRITEBACK,
    "dax.writeback.Writeback": _WRITEBACK,
}
"""The tests that kill what the explorer cannot see, by how the names of the mutants begin."""

USUAL: Final = (
    *("small/create-in-empty", "small/unlink-x", "small/append", "small/setxattr-large"),
    *("small/zero-holes", "tight/allocate-too-much+chmod", "small/unlink-keep-f", "small/rename"),
    *("small/append+write-in-place", "small/unlink-f+append", "small/zero-all"),
    *("full-chunks/chunk-split", "attributes/truncate-chmod-listed"),
)
"""Workloads that kill many mutants."""
TRIES: Final = 6
"""Workloads that are tried on a mutant, after that of the table."""
SECONDS_MAX: Final = 6.0
"""Time for a workload on a mutant."""


class Kill(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    by: str
    """The workload, or the test, that killed it; "" if it survived."""
    how: str
    """The oracle that saw it, or what was tried."""


class _Hunter(Walker):
    """A Walker that has little time, and does not make a failure smaller."""

    deadline = 0.0

    def _is_enough(self) -> bool:
        return super()._is_enough() or time.monotonic() > self.deadline

    def _reduce(self, log: Any, point: Any, phase: Any, row: Any, fault: str) -> Any:
        return row, fault


@cache
def _ground(tree: str) -> Ground:
    return Ground.make(tree, TREES[tree], image_size(tree))


def kill(mutant: Mutant, first: str = "") -> Kill:
    """Try to kill *mutant*, with *first* (a workload) before the others."""
    for start, test in BY_TESTS.items():
        if mutant.name.startswith(start):
            return _kill_by_test(mutant, test)
    tried = []
    for name in _candidates(mutant, first):
        fault = _fault(mutant, name)
        if fault:
            return Kill(mutant, name, fault)
        tried.append(name)
    return Kill(mutant, "", f"survived {', '.join(tried) or 'since no workload runs it'}")


def _fault(mutant: Mutant, name: str) -> str:
    """What the explorer finds when *mutant* runs the workload *name*: the oracle, or ""."""
    todo = workload(name)
    grounds = {todo.tree: _ground(todo.tree)}
    with mutant.applied():
        hunter = _Hunter(
            grounds, make_persist=mutant.persist, stop_at_first=True, recovery=mutant.site is None
        )
        hunter.deadline = time.monotonic() + SECONDS_MAX
        try:
            failures = hunter.explore(todo).failures
        except Exception as error:  # the mutant broke the explorer itself
            return f"0 runs: {type(error).__name__}"
    return failures[0].fault.partition(":")[0] if failures else ""


def _kill_by_test(mutant: Mutant, test: str) -> Kill:
    """Run *test* on *mutant*: it must fail, and not for want of being found."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "daxfs.testing.mutated", test]
    environment = os.environ | {VARIABLE: mutant.name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    failed = done.returncode == 1 and " failed" in done.stdout
    return Kill(mutant, test if failed else "", "test" if failed else f"survived {test}")


# --- candidates ----------------------------------------------------------------------------------


class _Watcher:
    """An Observer that notes which sites run."""

    def __init__(self, observer: Observer, seen: set[str]) -> None:
        self._observer = observer
        self._seen = seen

    def _note(self) -> None:
        self._seen.update(site.name for site in running())

    def on_store(self, offset: int, data: bytes) -> None:
        self._note()
        self._observer.on_store(offset, data)

    def on_flush(self, offset: int, length: int) -> None:
        self._note()
        self._observer.on_flush(offset, length)

    def on_fence(self) -> None:
        self._note()
        self._observer.on_fence()


class _WatchedPersist(Persist):
    """A Persist that has its steps noted."""

    seen: set[str]

    @property
    def observer(self) -> Observer | None:
        return self._observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._observer = observer and _Watcher(observer, self.seen)
        self._quiet = self._is_free and observer is None


@cache
def coverage() -> dict[str, list[str]]:
    """The names of the workloads of one operation that run each site, by the name of the site.

    Those with few steps come first; those that change nothing are left out.
    """
    seen: set[str] = set()

    def watched(image: Image, domain: Domain) -> Persist:
        persist = _WatchedPersist(image, domain)
        persist.seen = seen
        return persist

    found: dict[str, list[tuple[int, str]]] = {}
    for todo in ONE:
        seen.clear()
        walker = Walker({todo.tree: _ground(todo.tree)}, make_persist=watched)
        events = len(walker.record(todo).events)
        walker.sandbox(todo.tree).close()
        if "journal.undo.Journal.finish store" in seen:
            for site in seen:
                found.setdefault(site, []).append((events, todo.name))
    return {site: [name for _, name in sorted(names)] for site, names in found.items()}


def _candidates(mutant: Mutant, first: str) -> Iterator[str]:
    """The workloads to try on *mutant*, each once."""
    if first:
        yield first
    if mutant.site is None:
        yield from (name for name in USUAL if name != first)
        return
    covering = coverage().get(mutant.site.name, [])
    usual = [name for name in USUAL if name in covering]
    others = [name for name in covering if name not in USUAL]
    # Not only the cheapest, which are much alike.
    spread = others[:: max(1, len(others) // TRIES)]
    yield from (name for name in dict.fromkeys(usual + spread) if name != first)


# --- all of them ---------------------------------------------------------------------------------


def _silent_kill(task: tuple[Mutant, str]) -> Kill:
    logging.disable(logging.CRITICAL)
    return kill(*task)


def hunt(
    targets: Sequence[Mutant], jobs: int = 1, known: dict[str, str] | None = None
) -> Iterator[Kill]:
    """Kill *targets* in *jobs* processes; *known*: who killed a mutant of that name last."""
    known = known or {}
    tasks = [(mutant, known.get(mutant.name, "")) for mutant in targets]
    if any(mutant.name not in known for mutant in targets):
        coverage()  # once, for all processes
    with processes(jobs) as pool:
        yield from pool.imap(_silent_kill, tasks)


def outcome(kills: Sequence[Kill], seconds: float) -> Outcome:
    """*kills* for people and machines."""
    survivors = [kill for kill in kills if not kill.by]
    figures: dict[str, int | float | str] = {
        "mutants": len(kills),
        "killed": len(kills) - len(survivors),
        "by_the_explorer": sum("::" not in kill.by and bool(kill.by) for kill in kills),
        "by_tests": sum("::" in kill.by for kill in kills),
        "seconds": seconds,
    }
    return Outcome("mutants", figures, [f"{kill.mutant.name}: {kill.how}" for kill in survivors])


_HEAD: Final = """\
# The mutants

Bugs of crash consistency that are made on purpose, one at a time, and who finds them: the proof
that the crash tests see. What each kind means stands in `daxfs/testing/mutants.py`; the oracles in
`daxfs/testing/oracles.py`. Made by

    scripts/crash-test mutants --table docs/MUTANTS.md

| Mutant | Killed by | Oracle |
|---|---|---|
"""
_ROW: Final = re.compile(r"\| `(.+?)` \| `(.*?)` \| (.*?) \|$")


def table(kills: Sequence[Kill]) -> str:
    """The text of docs/MUTANTS.md."""
    rows = [f"| `{kill.mutant.name}` | `{kill.by}` | {kill.how} |" for kill in kills]
    return _HEAD + "\n".join(rows) + "\n"


def read_table(path: Path = TABLE) -> dict[str, str]:
    """Who killed each mutant, by its name, as the table says; empty without one."""
    if not path.exists():
        return {}
    rows = (_ROW.match(line) for line in path.read_text().splitlines())
    return {row[1]: row[2] for row in rows if row}
