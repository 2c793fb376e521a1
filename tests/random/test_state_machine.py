"""The same random operations on a daxfs mount and on a tmpfs folder: both must answer alike.

After each step the outcome (result or errno), the trees, all contents, attributes and link groups
are compared; after each example every block and inode must be free again, at the end fsck looks.

Not compared, with the reason
- st_blocks, and st_size of directories: every filesystem counts them its own way.
- atime: tmpfs and FUSE decide at different places when a read is worth a new one.
- the times that an mmap store sets: tmpfs sets none.
- the times after a truncation to the same size: tmpfs sets none, POSIX wants both.
- the times of fifos that are written: the kernel does that alone, and not for FUSE.
- holes of files that were copied to: tmpfs copies holes as zeroes.

tmpfs has no FALLOC_FL_ZERO_RANGE: there the range is punched, and allocated.

DAXFS_TEST_SEED repeats a run, DAXFS_TEST_EXAMPLES sets its length.
"""

import contextlib
import errno
import mmap
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daxmount import DaxMount
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from syscalls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    fallocate,
    opened,
    renameat2,
    wait_for_clock_tick,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(900)]

EXAMPLES = int(os.environ.get("DAXFS_TEST_EXAMPLES", "40"))
STEPS = 40
MAX_HANDLES = 3

CHOICES = st.integers(0, 999)
NAMES = st.sampled_from(["a", "b", "c", "n" * 255, "é", "x y"])
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0])
PAGE = 4096
PMD = 2 << 20
OFFSETS = st.one_of(
    st.integers(0, 3 * PAGE),
    st.sampled_from([PAGE - 1, PAGE, 5 * PAGE, PMD - PAGE, PMD - 1, PMD, PMD + 7 * PAGE + 3]),
    st.integers(0, 2 * PMD),
)
LENGTHS = st.sampled_from([1, 100, PAGE, PAGE + 1, 3 * PAGE, 40_000, PMD // 2])
FILLS = st.integers(1, 255)
TIMES = st.integers(-(10**18), 4 * 10**18)
XATTRS = st.sampled_from(["user.a", "user.b", "trusted.c"])
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ALLOCATIONS = st.sampled_from(
    [0, FALLOC_FL_KEEP_SIZE, PUNCH, PUNCH, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE]
)
OWNERS = st.sampled_from([(0, 0), (11, 22), (-1, 33), (44, -1)])

Node = tuple[Any, ...]
Outcome = tuple[str, Any]


class Side:
    """One of the two filesystems: the folder of the example, and the open files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.handles: list[int] = []

    def path(self, relative: str) -> str:
        return f"{self.root}/{relative}" if relative else str(self.root)

    def attempt(self, deed: Callable[["Side"], Any]) -> Outcome:
        try:
            return "done", deed(self)
        except OSError as failure:
            return "failed", errno.errorcode.get(failure.errno or 0, failure.errno)

    def walk(self) -> Iterator[str]:
        """Relative paths of everything, in a fixed order, the root (as "") first."""
        yield ""
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted(folders + files):
                yield os.path.relpath(os.path.join(folder, name), self.root)

    def tree(self) -> dict[str, Node]:
        """What must be equal on both sides, by relative path."""
        first: dict[int, str] = {}
        nodes: dict[str, Node] = {}
        for relative in self.walk():
            path = self.path(relative)
            status = os.lstat(path)
            group = first.setdefault(status.st_ino, relative)
            size = contents = None
            if stat.S_ISREG(status.st_mode):
                size = status.st_size
                contents = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                size = status.st_size
                contents = os.readlink(path)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
            nodes[relative] = (
                oct(status.st_mode),
                status.st_nlink,
                (status.st_uid, status.st_gid),
                group,
                size,
                attributes,
                contents,
            )
        return nodes

    def times(self) -> dict[tuple[int, str], int]:
        """mtime and ctime of everything, by inode: they stay with it when it gets a new name."""
        times = {}
        for relative in self.walk():
            status = os.lstat(self.path(relative))
            times[status.st_ino, "mtime"] = status.st_mtime_ns
            times[status.st_ino, "ctime"] = status.st_ctime_ns
        return times

    def close_all(self) -> None:
        for fd in self.handles:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.handles.clear()


def _describe(node: Node | None) -> str:
    text = repr(node)
    return text if len(text) < 400 else f"{text[:200]} ... {text[-150:]}"


def _first_difference(one: bytes, two: bytes) -> int:
    for start in range(0, min(len(one), len(two)), PAGE):
        if one[start : start + PAGE] != two[start : start + PAGE]:
            return next(i for i in range(start, start + PAGE) if one[i] != two[i])
    return min(len(one), len(two))


class Twins(RuleBasedStateMachine):
    """The machine; `mount` and `reference` are set by the test."""

    mount: DaxMount
    reference: Path
    free: tuple[int, int] | None = None
    """Free blocks and inodes of the mount with no example on it."""

    def __init__(self) -> None:
        super().__init__()
        self.revive()
        self.mount.watch()
        self.sides = (
            Side(Path(tempfile.mkdtemp(prefix="e-", dir=self.mount.path))),
            Side(Path(tempfile.mkdtemp(prefix="e-", dir=self.reference))),
        )
        self.steps = self.remounts = 0
        self.names: list[str] = [""]
        self.copied_to: set[int] = set()
        """Inodes (tmpfs has each number once) whose holes are not compared."""
        self.remember()

    @classmethod
    def revive(cls) -> None:
        """Mount again if a failed example has killed the daemon."""
        try:
            os.statvfs(cls.mount.path)
        except OSError:
            cls.mount.kill()
            cls.mount.start()

    # --- both sides ---

    def both(self, deed: Callable[[Side], Any], *, times: bool = True) -> Outcome:
        """Do *deed* on both sides and compare; *times* False where tmpfs sets times differently."""
        wait_for_clock_tick()
        ours, theirs = (side.attempt(deed) for side in self.sides)
        assert ours == theirs, f"daxfs: {_describe(ours)}, tmpfs: {_describe(theirs)}"
        self.steps += 1
        self.compare_trees()
        if times:
            self.compare_times(self.sides[0].times(), self.sides[1].times())
        self.remember()
        return theirs

    def compare_trees(self) -> None:
        ours, theirs = (side.tree() for side in self.sides)
        for relative in theirs.keys() | ours.keys():
            one, two = ours.get(relative), theirs.get(relative)
            if one == two:
                continue
            where = ""
            if one and two and isinstance(one[-1], bytes) and isinstance(two[-1], bytes):
                where = f" (contents differ at byte {_first_difference(one[-1], two[-1])})"
            raise AssertionError(
                f"{relative!r}: daxfs has {_describe(one)}, tmpfs {_describe(two)}{where}"
            )
        self.names = sorted(theirs)

    def compare_times(self, ours: dict[tuple[int, str], int], theirs: dict[Any, int]) -> None:
        """The same inodes (found by their names) must have got new times on both sides."""
        for relative in self.names:
            inodes = [os.lstat(side.path(relative)).st_ino for side in self.sides]
            for field in ("mtime", "ctime"):
                new = []
                for inode, now, before in zip(inodes, (ours, theirs), self.times, strict=True):
                    new.append(now[inode, field] != before.get((inode, field)))
                assert new[0] == new[1], f"{relative!r}: {field} is new on daxfs, tmpfs: {new}"

    def remember(self) -> None:
        self.times = [side.times() for side in self.sides]

    # --- picking ---

    def any_path(self, choice: int) -> str:
        return self.names[choice % len(self.names)]

    def new_path(self, choice: int, name: str) -> str:
        """*name* in one of the folders."""
        folders = [
            path for path in self.names if stat.S_ISDIR(os.lstat(self.sides[1].path(path)).st_mode)
        ]
        return f"{folders[choice % len(folders)]}/{name}".lstrip("/")

    # --- the operations ---

    @rule(where=CHOICES, name=NAMES, mode=MODES, exclusive=st.booleans())
    def create(self, where: int, name: str, mode: int, exclusive: bool) -> None:
        path = self.new_path(where, name)
        flags = os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW
        flags |= os.O_EXCL if exclusive else 0

        def deed(side: Side) -> None:
            with opened(side.path(path), flags, mode):
                pass

        self.both(deed)

    @rule(where=CHOICES, name=NAMES, mode=MODES)
    def mkdir(self, where: int, name: str, mode: int) -> None:
        path = self.new_path(where, name)
        self.both(lambda side: os.mkdir(side.path(path), mode))

    @rule(where=CHOICES, name=NAMES, mode=MODES)
    def mkfifo(self, where: int, name: str, mode: int) -> None:
        path = self.new_path(where, name)
        self.both(lambda side: os.mkfifo(side.path(path), mode))

    @rule(where=CHOICES, name=NAMES, text=st.sampled_from(["a", "../b", "t" * 300, "/dev/null"]))
    def symlink(self, where: int, name: str, text: str) -> None:
        path = self.new_path(where, name)
        self.both(lambda side: os.symlink(text, side.path(path)))

    @rule(source=CHOICES, where=CHOICES, name=NAMES)
    def link(self, source: int, where: int, name: str) -> None:
        old, new = self.any_path(source), self.new_path(where, name)
        self.both(lambda side: os.link(side.path(old), side.path(new), follow_symlinks=False))

    @rule(which=CHOICES)
    def unlink(self, which: int) -> None:
        path = self.any_path(which)
        self.both(lambda side: os.unlink(side.path(path)))

    @rule(which=CHOICES)
    def rmdir(self, which: int) -> None:
        path = self.any_path(which)
        if path:
            self.both(lambda side: os.rmdir(side.path(path)))

    @rule(
        source=CHOICES,
        where=CHOICES,
        name=NAMES,
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, source: int, where: int, name: str, flags: int) -> None:
        old, new = self.any_path(source), self.new_path(where, name)
        if old:
            self.both(lambda side: renameat2(side.path(old), side.path(new), flags))

    @rule(source=CHOICES, victim=CHOICES, flags=st.sampled_from([0, RENAME_EXCHANGE]))
    def rename_over(self, source: int, victim: int, flags: int) -> None:
        old, new = self.any_path(source), self.any_path(victim)
        if old and new:
            self.both(lambda side: renameat2(side.path(old), side.path(new), flags))

    @rule(which=CHOICES, offset=OFFSETS, length=LENGTHS, fill=FILLS)
    def write(self, which: int, offset: int, length: int, fill: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> int:
            with opened(side.path(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                return os.pwrite(fd, bytes([fill]) * length, offset)

        self.both(deed)

    @rule(which=CHOICES, length=LENGTHS, fill=FILLS)
    def append(self, which: int, length: int, fill: int) -> None:
        path = self.any_path(which)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW

        def deed(side: Side) -> int:
            with opened(side.path(path), flags) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > 3 * PMD:
                    return 0
                return os.write(fd, bytes([fill]) * length)

        self.both(deed)

    @rule(which=CHOICES, size=OFFSETS)
    def truncate(self, which: int, size: int) -> None:
        path = self.any_path(which)
        same = os.lstat(self.sides[1].path(path)).st_size == size
        if not stat.S_ISLNK(os.lstat(self.sides[1].path(path)).st_mode):
            self.both(lambda side: os.truncate(side.path(path), size), times=not same)

    @rule(which=CHOICES, offset=OFFSETS, length=LENGTHS, fill=FILLS, flush=st.booleans())
    def mmap_store(self, which: int, offset: int, length: int, fill: int, flush: bool) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> None:
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW
            with opened(side.path(path), flags) as fd:
                size = os.fstat(fd).st_size
                if not stat.S_ISREG(os.fstat(fd).st_mode) or offset >= size:
                    return
                with mmap.mmap(fd, 0) as memory:
                    end = min(offset + length, size)
                    memory[offset:end] = bytes([fill]) * (end - offset)
                    if flush:
                        memory.flush()

        self.both(deed, times=False)

    @rule(which=CHOICES, size=OFFSETS, fill=FILLS)
    def store_behind_the_end(self, which: int, size: int, fill: int) -> None:
        """A program may store into the rest of the last page: a longer file must not show it.

        tmpfs does show it, so there the bytes are cleared by hand.
        """
        path, size = self.any_path(which), size + 1
        rest = -size % PAGE

        def deed(side: Side) -> None:
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW
            with opened(side.path(path), flags) as fd:
                if not rest or not stat.S_ISREG(os.fstat(fd).st_mode):
                    return
                os.ftruncate(fd, size + rest)
                with mmap.mmap(fd, 0) as memory:
                    os.ftruncate(fd, size)
                    memory[size : size + rest] = bytes([fill]) * rest
                    memory.flush()
                os.ftruncate(fd, size + rest + PAGE)
                if side is self.sides[0]:
                    assert not any(os.pread(fd, rest, size)), "bytes from behind the end"
                os.pwrite(fd, bytes(rest), size)

        self.both(deed)

    @rule(which=CHOICES, offset=OFFSETS, length=LENGTHS)
    def read_through_mmap(self, which: int, offset: int, length: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> bytes:
            with opened(side.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                    return b""
                if side is self.sides[1]:  # tmpfs fills the holes that are read by a mapping
                    return os.pread(fd, length, offset)
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
                    return memory[offset : offset + length]

        self.both(deed)

    @rule(which=CHOICES, mode=ALLOCATIONS, offset=OFFSETS, length=LENGTHS)
    def fallocate(self, which: int, mode: int, offset: int, length: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> None:
            with opened(side.path(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                fallocate(fd, mode, offset, length)

        self.both(deed)

    @rule(which=CHOICES, offset=OFFSETS, length=LENGTHS, keep_size=st.booleans())
    def zero_range(self, which: int, offset: int, length: int, keep_size: bool) -> None:
        path, keep = self.any_path(which), FALLOC_FL_KEEP_SIZE if keep_size else 0

        def deed(side: Side) -> None:
            with opened(side.path(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                if side is self.sides[0]:
                    fallocate(fd, FALLOC_FL_ZERO_RANGE | keep, offset, length)
                else:
                    fallocate(fd, PUNCH, offset, length)
                    fallocate(fd, keep, offset, length)

        self.both(deed)

    @rule(which=CHOICES, offset=OFFSETS)
    def seek(self, which: int, offset: int) -> None:
        path = self.any_path(which)
        if os.lstat(self.sides[1].path(path)).st_ino in self.copied_to:
            return

        def deed(side: Side) -> list[Outcome]:
            with opened(side.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return []
                return [
                    side.attempt(lambda _, whence=whence: os.lseek(fd, offset, whence))
                    for whence in (os.SEEK_DATA, os.SEEK_HOLE)
                ]

        self.both(deed)

    @rule(source=CHOICES, victim=CHOICES, offset=OFFSETS, position=OFFSETS, length=LENGTHS)
    def copy_range(self, source: int, victim: int, offset: int, position: int, length: int) -> None:
        old, new = self.any_path(source), self.any_path(victim)
        flags = os.O_NONBLOCK | os.O_NOFOLLOW
        self.copied_to.add(os.lstat(self.sides[1].path(new)).st_ino)

        def deed(side: Side) -> int:
            with opened(side.path(old), os.O_RDONLY | flags) as one:
                with opened(side.path(new), os.O_WRONLY | flags) as two:
                    return os.copy_file_range(one, two, length, offset, position)

        self.both(deed)

    @rule(which=CHOICES, mode=MODES)
    def chmod(self, which: int, mode: int) -> None:
        path = self.any_path(which)
        if not os.path.islink(self.sides[1].path(path)):
            self.both(lambda side: os.chmod(side.path(path), mode))

    @rule(which=CHOICES, owner=OWNERS)
    def chown(self, which: int, owner: tuple[int, int]) -> None:
        path = self.any_path(which)
        self.both(lambda side: os.chown(side.path(path), *owner, follow_symlinks=False))

    @rule(which=CHOICES, atime=TIMES, mtime=TIMES)
    def utime(self, which: int, atime: int, mtime: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> int:
            os.utime(side.path(path), ns=(atime, mtime), follow_symlinks=False)
            return os.lstat(side.path(path)).st_mtime_ns

        self.both(deed)

    @rule(which=CHOICES, name=XATTRS, length=st.sampled_from([0, 1, 100, 5000]), fill=FILLS)
    def setxattr(self, which: int, name: str, length: int, fill: int) -> None:
        path, value = self.any_path(which), bytes([fill]) * length
        self.both(lambda side: os.setxattr(side.path(path), name, value, follow_symlinks=False))

    @rule(which=CHOICES, name=XATTRS)
    def removexattr(self, which: int, name: str) -> None:
        path = self.any_path(which)
        self.both(lambda side: os.removexattr(side.path(path), name, follow_symlinks=False))

    @rule(which=CHOICES)
    def fsync(self, which: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> None:
            with opened(side.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) as fd:
                os.fsync(fd)

        self.both(deed)

    @rule(which=CHOICES)
    def names_from_above(self, which: int) -> None:
        """A folder's ``..`` and its own listing, by descriptor."""
        path = self.any_path(which)

        def deed(side: Side) -> tuple[bool, list[str]]:
            with opened(side.path(path), os.O_RDONLY | os.O_DIRECTORY) as fd:
                above = os.stat("..", dir_fd=fd).st_ino
                parent = os.stat(os.path.dirname(side.path(path))).st_ino
                return above == parent, sorted(os.listdir(fd))

        self.both(deed)

    # --- files that stay open, also unlinked ones ---

    @precondition(lambda self: len(self.sides[0].handles) < MAX_HANDLES)
    @rule(which=CHOICES)
    def open_handle(self, which: int) -> None:
        path = self.any_path(which)

        def deed(side: Side) -> None:
            fd = os.open(side.path(path), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            side.handles.append(fd)

        self.both(deed)

    @precondition(lambda self: self.sides[0].handles)
    @rule(which=CHOICES, offset=OFFSETS, length=LENGTHS, fill=FILLS)
    def use_handle(self, which: int, offset: int, length: int, fill: int) -> None:
        index = which % len(self.sides[0].handles)

        def deed(side: Side) -> Any:
            fd = side.handles[index]
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return status.st_mode
            os.pwrite(fd, bytes([fill]) * length, offset)
            size = os.fstat(fd).st_size
            return status.st_nlink, size, os.pread(fd, size, 0)

        self.both(deed)

    @precondition(lambda self: self.sides[0].handles)
    @rule(which=CHOICES)
    def close_handle(self, which: int) -> None:
        index = which % len(self.sides[0].handles)
        self.both(lambda side: os.close(side.handles.pop(index)))

    # --- the mount ---

    @precondition(lambda self: self.steps >= 8 and self.remounts < 1)
    @rule()
    def remount(self) -> None:
        self.remounts += 1
        for side in self.sides:
            side.close_all()
        before = self.sides[0].times()
        self.mount.remount()
        assert self.sides[0].times() == before, "the times survive"
        self.both(lambda side: None)

    def teardown(self) -> None:
        for side in self.sides:
            side.close_all()
            shutil.rmtree(side.root)
        self.check_nothing_leaked()

    def check_nothing_leaked(self) -> None:
        def free() -> tuple[int, int]:
            status = os.statvfs(self.mount.path)
            return status.f_bfree, status.f_ffree

        # The last close of a file is answered before its blocks are free (RELEASE has no answer).
        deadline = time.monotonic() + 3
        expected = type(self).free
        while expected is not None and (now := free()) != expected:
            assert time.monotonic() < deadline, f"free blocks, inodes: {now}, were {expected}"
            time.sleep(0.01)


@pytest.mark.parametrize("options", ["dax=always", "dax=never"])
def test_daxfs_and_tmpfs_answer_alike(
    make_mount: Callable[..., DaxMount], as_root: None, image_space: Path, options: str
) -> None:
    mount = make_mount(options, size="128M")
    number = int(os.environ.get("DAXFS_TEST_SEED") or random.randrange(1 << 32))
    print(f"DAXFS_TEST_SEED={number}")
    if image_space.parent != Path("/dev/shm"):
        pytest.skip("there is no tmpfs to compare with")
    reference = Path(tempfile.mkdtemp(prefix="reference-", dir=image_space))
    try:
        os.setxattr(reference, "user.probe", b"x")
        os.removexattr(reference, "user.probe")
    except OSError:
        pytest.skip("this kernel's tmpfs has no user attributes")

    class Machine(Twins):
        pass

    Machine.mount, Machine.reference = mount, reference
    # The root directory may keep the block that its first name needed.
    (mount.path / "first").touch()
    (mount.path / "first").unlink()
    status = os.statvfs(mount.path)
    Machine.free = (status.f_bfree, status.f_ffree)
    run_state_machine_as_test(
        seed(number)(Machine),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
