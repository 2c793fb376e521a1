"""Mutants: each misbehaves at its site and as it says, and the crash tests kill every one."""

import time
from pathlib import Path

import pytest
from fsbox import ROOT, FsBox

from daxfs.fs.super import FileSystem
from daxfs.journal.undo import Transaction
from daxfs.ondisk.layout import JOURNAL_SEQ_OFFSET
from daxfs.testing import hunt
from daxfs.testing.jobs import processors
from daxfs.testing.mutants import KINDS, LOGIC, Mutant, MutantPersist, mutants
from daxfs.testing.recorder import Fence, Flush, Recorder, Store
from daxfs.testing.sites import sites

BY_NAME = {mutant.name: mutant for mutant in mutants()}
UNDO = "journal.undo."


def log(name: str | None) -> list[str]:
    """What a recorder sees of a new file on the mutant *name*: each store by its place."""
    box = FsBox(1 << 20)
    box.fs.unmount()
    if name is not None:
        box.persist = BY_NAME[name].persist(box.image, "memory")
    box.fs = FileSystem.mount(box.image, box.persist)
    box.fs.mkdir(box.root, b"first", 0o755, ROOT)
    recorder = Recorder(box.image)
    box.persist.observer = recorder
    box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.persist.observer = None
    start, end = box.fs.journal.start, box.fs.journal.end
    found = []
    for event in recorder.events:
        match event:
            case Store(offset) | Flush(offset):
                place = "entry" if start <= offset < end else "change"
                place = "number" if offset == JOURNAL_SEQ_OFFSET else place
                found.append(f"{type(event).__name__.lower()} {place}")
            case Fence():
                found.append("fence")
    box.close()
    return found


ENTRY = ["store entry", "flush entry", "fence"]
CHANGE = ["store change", "flush change"]
FINISH = ["store number", "flush number", "fence"]
WHOLE = 3 * (ENTRY + CHANGE) + ["fence"] + FINISH


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        (None, WHOLE),
        ("Journal.finish flush: dropped", WHOLE[:-2] + WHOLE[-1:]),
        ("Journal.finish fence: dropped", WHOLE[:-1]),
        ("Journal.finish fence: early", [*WHOLE[:-3], "fence", *FINISH[:-1]]),
        ("Transaction._commit fence: dropped", 3 * (ENTRY + CHANGE) + FINISH),
        ("Transaction._commit fence: early", [*WHOLE[:-6], "fence", *CHANGE, *FINISH]),
        ("Transaction.store fence: dropped", 3 * (ENTRY[:-1] + CHANGE) + ["fence", *FINISH]),
        (
            "Transaction._append store: late",
            3 * ["fence", "store change", "store entry", "flush entry", "flush change"]
            + ["fence", *FINISH],
        ),
        (
            "Transaction.store store: late",
            [*3 * ENTRY, "fence", "store number", *3 * CHANGE, "flush number", "fence"],
        ),
        (
            "Transaction.store flush: late",
            [
                *3 * [*ENTRY, "store change"],
                *("fence", "store number", *3 * ["flush change"], "flush number", "fence"),
            ],
        ),
        ("Journal.finish store: late", [*WHOLE[:-3], "fence"]),
    ],
)
def test_a_mutant_of_an_order_shows_another_one(name: str | None, seen: list[str]) -> None:
    assert log(name and UNDO + name) == seen


def test_a_mutant_of_an_order_leaves_the_image_as_it_is(box: FsBox) -> None:
    box.fs.unmount()
    data = bytes(box.image.mem)
    mutant = BY_NAME["fs.dir.Directories.insert tx.store: late"]
    persist = mutant.persist(box.image, "memory")
    assert isinstance(persist, MutantPersist)
    recorder = Recorder(box.image)
    persist.observer = recorder
    fs = FileSystem.mount(box.image, persist)
    fs.create(fs.root, b"f", 0o644, ROOT)
    assert fs.lookup(fs.root, b"f").is_reg
    persist.observer = None
    forwards = bytearray(data)
    for event in recorder.events:
        if isinstance(event, Store):
            assert forwards[event.offset : event.offset + len(event.old)] == event.old
            forwards[event.offset : event.offset + len(event.new)] = event.new
    assert forwards == box.image.mem
    persist.close()


def test_an_unlogged_mutant_leaves_out_the_entries_of_its_site_alone(box: FsBox) -> None:
    sizes = {}
    for name in (None, "fs.dir.Directories.insert tx.store: unlogged"):
        box.persist.observer = recorder = Recorder(box.image)
        if name is None:
            box.fs.create(box.root, b"without", 0o644, ROOT)
        else:
            with BY_NAME[name].applied():
                box.fs.create(box.root, b"with", 0o644, ROOT)
        sizes[name] = sum(isinstance(event, Fence) for event in recorder.events)
    assert list(sizes.values())[1] == sizes[None] - 1


def test_each_site_has_its_mutants() -> None:
    names = [mutant.name for mutant in mutants()]
    assert len(set(names)) == len(names) == len(LOGIC) + sum(len(KINDS[s.call]) for s in sites())


def test_the_table_lists_the_present_mutants_and_no_survivor() -> None:
    known = hunt.read_table()
    assert list(known) == [mutant.name for mutant in mutants()], (
        "make the table again: scripts/crash-test mutants --table docs/MUTANTS.md"
    )
    assert all(known.values())


def test_a_table_can_be_read_again(tmp_path: Path) -> None:
    kills = [
        hunt.Kill(Mutant("a fence: early", "early"), "small/create", "2 atomic"),
        hunt.Kill(Mutant("b", "logic"), "", "survived nothing"),
    ]
    (tmp_path / "table.md").write_text(hunt.table(kills))
    assert hunt.read_table(tmp_path / "table.md") == {"a fence: early": "small/create", "b": ""}
    assert hunt.outcome(kills, 1.0).failures == ["b: survived nothing"]


def test_right_code_survives() -> None:
    """What is no mutant is not killed: by the explorer, nor by a test."""
    harmless = Mutant("no mutant", "logic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOGIC, "no mutant", lambda: pytest.MonkeyPatch.context())
        assert not hunt._fault(harmless, "small/create-in-empty")
    commit = Transaction._commit
    with BY_NAME["a commit does not finish its number"].applied():
        assert Transaction._commit is not commit
    assert Transaction._commit is commit


@pytest.mark.timeout(900)
def test_all_mutants_are_killed() -> None:
    started = time.monotonic()
    kills = list(hunt.hunt(mutants(), processors(), hunt.read_table()))
    print(hunt.outcome(kills, time.monotonic() - started).to_json())
    assert [f"{kill.mutant.name}: {kill.how}" for kill in kills if not kill.by] == []
