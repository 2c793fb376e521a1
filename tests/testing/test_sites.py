"""Sites: found in the source, and again while they run."""

from pathlib import Path

from fsbox import ROOT, FsBox

from daxfs.testing import sites
from daxfs.testing.sites import Site, running

SOURCE = """
class Journal:
    def finish(self, seq):
        self.persist.store_u64(8, seq)
        self.persist.flush(8, 8)
        self.persist.fence()
        self.persist.fence()
        self.other.fence()

def late(op, core):
    def inner():
        op.tx.log(0, 8)
    fill.tx.store(0, b"")
    core.persist.fill(0, 8)
"""


def test_a_site_is_known_by_its_form(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(SOURCE)
    found = sites._sites_of(tmp_path / "some.py", "part.some")
    assert [(site.name, site.call, site.line) for site in found] == [
        ("part.some.Journal.finish store", "store", 4),
        ("part.some.Journal.finish flush", "flush", 5),
        ("part.some.Journal.finish fence", "fence", 6),
        ("part.some.Journal.finish fence 2", "fence", 7),
        ("part.some.late.inner tx.log", "tx.log", 12),
        ("part.some.late tx.store", "tx.store", 13),
        ("part.some.late store", "store", 14),
    ]


def test_each_site_of_the_code_has_a_line_and_a_name_of_its_own() -> None:
    found = sites.sites()
    assert len({site.name for site in found}) == len(found)
    assert len({(site.path, site.line) for site in found}) == len(found)


def test_a_running_site_is_found(box: FsBox) -> None:
    class Watch:
        def on_store(self, offset: int, data: bytes) -> None:
            seen.append(running())

        def on_flush(self, offset: int, length: int) -> None:
            seen.append(running())

        def on_fence(self) -> None:
            seen.append(running())

    seen: list[list[Site]] = []
    box.persist.observer = Watch()
    box.fs.create(box.root, b"f", 0o644, ROOT)
    box.persist.observer = None
    names = [[site.name for site in stack] for stack in seen]
    assert names[0][0] == "journal.undo.Transaction._append store"
    assert ["journal.undo.Transaction._append flush", "fs.dir.Directories.insert tx.store"] in names
    assert names[-1] == ["journal.undo.Journal.finish fence"]
    assert all(names)
