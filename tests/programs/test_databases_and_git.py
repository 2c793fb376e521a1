"""sqlite and git on the mount."""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, background, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
DAX_MODES = ["dax=always", "dax=never"]


@pytest.fixture(params=DAX_MODES)
def place(request: pytest.FixtureRequest, make_mount: MakeMount) -> DaxMount:
    return make_mount(request.param, size="256M")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_keeps_its_rows_and_its_integrity(place: DaxMount, journal: str) -> None:
    path = place.path / "base.db"
    base = sqlite3.connect(path)
    assert base.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    base.execute("create table rows (number integer primary key, text varchar)")
    for start in range(0, 5000, 500):
        with base:
            base.executemany(
                "insert into rows values (?, ?)",
                [(number, f"row {number} " * 20) for number in range(start, start + 500)],
            )
    with base:
        base.execute("delete from rows where number % 3 = 0")
    base.execute("delete from rows")
    base.rollback()
    base.execute("vacuum")
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    place.remount()
    again = sqlite3.connect(path)
    expected = sum(1 for number in range(5000) if number % 3)
    assert again.execute("select count(*) from rows").fetchone() == (expected,)
    assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    again.close()


_WAL_WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60)
base.execute("pragma synchronous=normal")
for number in range(150):
    with base:
        base.execute("insert into rows (who, number) values (?, ?)", (sys.argv[2], number))
base.close()
"""


def test_two_processes_write_one_sqlite_base_in_wal_mode(place: DaxMount) -> None:
    path = place.path / "base.db"
    base = sqlite3.connect(path, timeout=60)
    assert base.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    base.execute("create table rows (who varchar, number integer)")
    base.commit()
    with (
        background([sys.executable, "-c", _WAL_WRITER, path, "one"]) as one,
        background([sys.executable, "-c", _WAL_WRITER, path, "two"]) as two,
    ):
        counts = []
        while one.poll() is None or two.poll() is None:
            counts.append(base.execute("select count(*) from rows").fetchone()[0])
        assert (one.wait(120), two.wait(120)) == (0, 0)
    assert counts == sorted(counts), "a reader never goes back"
    seen = base.execute("select who, number from rows order by who, number").fetchall()
    assert seen == [(who, number) for who in ("one", "two") for number in range(150)]
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    assert not (place.path / "base.db-wal").exists(), "the last one to close cleans up"


def test_sqlite_maps_its_base(place: DaxMount) -> None:
    path = place.path / "base.db"
    base = sqlite3.connect(path)
    base.execute(f"pragma mmap_size={1 << 26}")
    base.execute("create table blobs (number integer primary key, blob)")
    with base:
        blobs = [(number, os.urandom(10_000)) for number in range(300)]
        base.executemany("insert into blobs values (?, ?)", blobs)
    assert base.execute("select number, blob from blobs order by number").fetchall() == blobs
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()


def _git_environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "LC_ALL": "C",
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_commits_clones_collects_and_checks(place: DaxMount, tmp_path: Path) -> None:
    env = _git_environment(tmp_path)

    def git(*words: str | Path, at: str = "work") -> str:
        return run(["git", *words], cwd=place.path / at, env=env, timeout=240).stdout

    (place.path / "work").mkdir()
    git("init", "--quiet", "--initial-branch=main")
    for commit in range(12):
        for number in range(15):
            file = place.path / "work" / f"dir-{number % 5}" / f"file-{number}"
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{commit} {number}\n" * (100 + number * commit))
        os.symlink(f"file-{commit}", place.path / "work" / f"link-{commit}")
        git("add", "--all")
        git("commit", "--quiet", "--message", f"commit {commit}")
    git("branch", "side", "HEAD~5")
    git("gc", "--quiet", "--aggressive", "--prune=now")
    assert git("fsck", "--full", "--strict").strip() == ""
    git("clone", "--quiet", "--no-local", "work", "clone", at=".")
    git("clone", "--quiet", "work", "linked", at=".")
    for clone in ("clone", "linked"):
        git("fsck", "--full", at=clone)
        assert git("rev-parse", "HEAD", at=clone) == git("rev-parse", "HEAD")
        assert git("status", "--porcelain", at=clone) == ""
    git("checkout", "--quiet", "side")
    git("checkout", "--quiet", "main")
    place.remount()
    assert git("status", "--porcelain") == ""
    assert git("fsck", "--full").strip() == ""
    assert len(git("log", "--format=%H").split()) == 12


def test_json_lines_of_two_appenders_are_whole(place: DaxMount) -> None:
    script = (
        "import json, sys\n"
        "log = open(sys.argv[1], 'a', buffering=1)\n"
        "for n in range(500): log.write(json.dumps({'who': sys.argv[2], 'n': n}) + '\\n')\n"
    )
    path = place.path / "log"
    with (
        background([sys.executable, "-c", script, path, "one"]) as one,
        background([sys.executable, "-c", script, path, "two"]) as two,
    ):
        assert (one.wait(60), two.wait(60)) == (0, 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for who in ("one", "two"):
        assert [line["n"] for line in lines if line["who"] == who] == list(range(500))
