"""What a benchmark builds and takes down again: a folder, mounts, child processes.

Invariant: whatever happens, a signal included, nothing stays behind: no mount, no image in shared
memory, no cgroup, no process. Each thing is a context manager; a signal becomes one exception, and
later signals are ignored while the managers unwind.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from daxfs.bench.cgroup import MemoryCgroup
from daxfs.bench.reader import ReadPass
from daxfs.errors import CommandError
from daxfs.fuse.control import Client

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
DAXFS = (sys.executable, "-m", "daxfs")
READER = (sys.executable, "-m", "daxfs.bench.reader")
ENTRY_KINDS = ("pte_zero", "pte_mapped", "pmd_zero", "pmd_mapped")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOUNT_TIMEOUT_S = 60


class Interrupted(BaseException):
    """A signal asked to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into Interrupted and ignore the next ones."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if _hold.active:
            _hold.signum = signum
        else:
            raise Interrupted(signum)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Hold:
    """A signal that came while it had to wait."""

    active = False
    signum: int | None = None


_hold = _Hold()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Raise Interrupted only at the end of the block, in which something begins to exist.

    Masking the signals would not do: a child process would inherit the mask.
    """
    _hold.active = True
    try:
        yield
    finally:
        _hold.active = False
    if _hold.signum is not None:
        signum, _hold.signum = _hold.signum, None
        raise Interrupted(signum)


@contextmanager
def exit_on_trouble(program: str) -> Iterator[None]:
    """End *program* with one line and an exit code on a CommandError or a signal."""
    try:
        yield
    except CommandError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(error.code)
    except Interrupted as signal_:
        print(f"{program}: interrupted; everything is taken down again", file=sys.stderr)
        sys.exit(128 + signal_.signum)


@contextmanager
def workspace() -> Iterator[Path]:
    """A new folder, in shared memory where there is such a thing, deleted at the end."""
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-", dir=memory) as folder:
        yield Path(folder)


def run(argv: Sequence[str], group: MemoryCgroup | None = None) -> str:
    """Run a program (inside the cgroup *group*) to its end and return what it printed.

    It is killed with its children if we are interrupted. Raises CommandError if it fails.
    """
    command = group.command(argv) if group else list(argv)
    process = None
    try:
        with _signals_wait():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        output, errors = process.communicate()
    except BaseException:
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise
    if process.returncode:
        reason = errors.strip() or f"exit code {process.returncode}"
        raise CommandError(f"{' '.join(argv[:4])} ...: {reason}")
    return output


def read_hole(path: Path, settle_s: float = 1.0, group: MemoryCgroup | None = None) -> ReadPass:
    """Let a process of its own read the hole *path* through mmap."""
    text = run([*READER, str(path), "--settle", str(settle_s)], group)
    return ReadPass(**json.loads(text))


def write_hole(path: Path, size: int) -> float:
    """Let a process of its own store into the first *size* bytes of *path*; us for each page."""
    result = json.loads(run([*READER, str(path), "--write", str(size)]))
    return float(result["elapsed_ns"] / result["pages"] / 1000)


def make_hole(path: Path, size: int) -> None:
    """A new file of *size* bytes that is one hole."""
    with path.open("xb") as file:
        file.truncate(size)


def make_image(path: Path, size: str) -> None:
    """A new formatted image."""
    run([*DAXFS, "mkfs", "--size", size, str(path)])


class Stat(NamedTuple):
    """Some figures of ``daxfs stat``."""

    daemon_pid: int
    blocks_used: int
    entries: dict[str, int]
    """Index entries by kind."""


class Mount:
    """A mounted image; use it with ``with``."""

    def __init__(self, image: Path, point: Path, options: str) -> None:
        self.image = image
        self.point = point
        self.options = options

    def __enter__(self) -> "Mount":
        self.point.mkdir(exist_ok=True)
        argv = [*DAXFS, "mount", "-o", self.options, str(self.image), str(self.point)]
        try:
            with _signals_wait():  # a mount cut short could appear after we have looked for it
                result = subprocess.run(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    timeout=_MOUNT_TIMEOUT_S,
                    check=False,
                )
        except BaseException:
            self._unmount()
            raise
        if result.returncode:
            raise CommandError(result.stderr.strip() or f"mount: exit code {result.returncode}")
        return self

    def __exit__(self, *_error: object) -> None:
        self._unmount()

    def stat(self) -> Stat:
        """Figures of this mount as they are now."""
        with Client(str(self.point)) as client:
            answer = client.request("stat")
        return Stat(
            answer["pid"],
            answer["blocks"]["used"],
            {kind: answer["entries"][kind] for kind in ENTRY_KINDS},
        )

    def _unmount(self) -> None:
        point = str(self.point)
        for argv in ([*DAXFS, "umount", point], ["fusermount3", "-u", "-z", point]):
            if not os.path.ismount(point):
                return
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
