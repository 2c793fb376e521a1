"""tar, gcc, rsync and numpy on the mount."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from daxmount import DaxMount, run
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
DAX_MODES = ["dax=always", "dax=never"]
MIB = 1 << 20

_HEADER = "int part_{0}(int value);\n"
_PART = """#include "parts.h"
int part_{0}(int value) {{ return value + {0}; }}
"""
_MAIN = """#include <stdio.h>
#include "parts.h"
int main(void) {{
    int value = 0;
{0}
    printf("%d\\n", value);
    return 0;
}}
"""
_MAKEFILE = """parts := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(parts)
\tgcc -o $@ $^
%.o: %.c parts.h
\tgcc -O1 -g -c -o $@ $<
"""


def _write_program(folder: Path, parts: int) -> None:
    folder.mkdir()
    (folder / "parts.h").write_text("".join(_HEADER.format(n) for n in range(parts)))
    for number in range(parts):
        (folder / f"part_{number}.c").write_text(_PART.format(number))
    calls = "\n".join(f"    value = part_{n}(value);" for n in range(parts))
    (folder / "main.c").write_text(_MAIN.format(calls))
    (folder / "Makefile").write_text(_MAKEFILE)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("options", DAX_MODES)
def test_a_c_program_is_unpacked_built_and_run(
    make_mount: MakeMount, tmp_path: Path, options: str
) -> None:
    mount = make_mount(options)
    _write_program(tmp_path / "program", 20)
    run(["tar", "-C", tmp_path, "-czf", tmp_path / "program.tar.gz", "program"])
    run(["tar", "-C", mount.path, "-xzf", tmp_path / "program.tar.gz"])
    built = mount.path / "program"
    if shutil.which("make"):
        run(["make", "-j2"], cwd=built)
        assert "up to date" in run(["make"], cwd=built).stdout
    else:
        run(["gcc", "-o", "program", *sorted(built.glob("*.c"))], cwd=built)
    assert run([built / "program"]).stdout == f"{sum(range(20))}\n"
    run(["tar", "-C", mount.path, "-cf", mount.path / "again.tar", "program"])
    run(["tar", "-C", mount.path, "--compare", "-f", mount.path / "again.tar"])
    mount.remount()
    assert run([built / "program"]).stdout == f"{sum(range(20))}\n"


@pytest.mark.parametrize("options", DAX_MODES)
def test_numpy_memmap_of_100_mib_keeps_every_number(make_mount: MakeMount, options: str) -> None:
    mount = make_mount(options, size="160M")
    path = mount.path / "numbers"
    count = 100 * MIB // 8
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 100 * MIB)
    numbers = np.memmap(path, "<u8", mode="r+")
    assert numbers.shape == (count,)
    assert not numbers[::512].any()
    numbers[:] = np.arange(count, dtype="<u8") * 3
    numbers[::1000] = 7
    numbers.flush()
    del numbers
    mount.remount()
    expected = np.arange(count, dtype="<u8") * 3
    expected[::1000] = 7
    again = np.memmap(path, "<u8", mode="r")
    assert np.array_equal(again, expected)
    del again


def _make_varied_tree(folder: Path) -> None:
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "data").write_bytes(os.urandom(300_000))
    with opened(folder / "sparse", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"middle", 5 * MIB)
        os.ftruncate(fd, 20 * MIB)
    deep = folder / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for number in range(100):
        (deep / f"small-{number}").write_bytes(b"s" * number)
    os.link(folder / "data", deep / "hard link")
    os.symlink("../nowhere", folder / "a" / "dangling")
    (folder / "data").chmod(0o4750)
    os.setxattr(folder / "empty", "user.note", b"kept")
    if os.geteuid() == 0:
        os.mkfifo(folder / "fifo", 0o600)
        os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(folder / "sparse", 12, 34)
        run(["setfacl", "-m", "u:1234:rw", folder / "empty"])
        run(["setfacl", "-d", "-m", "u:1234:rwx", folder / "a"])
    # rsync looks at whole seconds only: a time of this very second might not be copied.
    for number, path in enumerate([*folder.rglob("*"), folder]):
        times = (10**18 + number, 10**18 + number * 1_000_000_007)
        os.utime(path, ns=times, follow_symlinks=False)


def _describe(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that ``rsync -aHAX`` promises to keep."""
    described = {}
    groups: dict[int, str] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(folder))
        contents = ""
        if stat.S_ISREG(status.st_mode):
            contents = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            contents = os.readlink(path)
        attributes = [
            (key, os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        ]
        described[name] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            status.st_mtime_ns,
            groups.setdefault(status.st_ino, name),
            contents,
            attributes,
        )
    return described


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed")
@pytest.mark.parametrize("options", DAX_MODES)
def test_rsync_round_trip_keeps_everything(
    make_mount: MakeMount, workspace: Path, options: str
) -> None:
    mount = make_mount(f"{options},enable_acl", size="128M")
    source, back = workspace / "rsync-source", workspace / "rsync-back"
    try:
        _make_varied_tree(source)
        run(["rsync", "-aHAX", "--sparse", f"{source}/", f"{mount.path}/copy/"])
        assert _describe(mount.path / "copy") == _describe(source)
        assert (mount.path / "copy" / "sparse").stat().st_blocks * 512 < MIB
        mount.remount()
        assert run(["rsync", "-aHAXni", f"{source}/", f"{mount.path}/copy/"]).stdout == ""
        run(["rsync", "-aHAX", f"{mount.path}/copy/", f"{back}/"])
        assert _describe(back) == _describe(source)
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(back, ignore_errors=True)
