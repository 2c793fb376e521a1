"""An image and its mount, driven by the ``daxfs`` command, that can be killed at any moment.

Nothing here waits without a limit: what touches the mount runs in a process of its own, and a
mount that hangs is aborted (``Hang`` says what hung).
"""

import contextlib
import os
import pickle
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

import daxfs
from daxfs.journal import undo
from daxfs.ondisk import layout
from daxfs.ondisk.bitmap import decode_bitmap

T = TypeVar("T")

LIMIT_SECONDS: Final = 60.0
"""How long one command may take."""

POISON: Final = 0xDB
"""What free blocks are filled with."""

_POLL_SECONDS: Final = 0.005
_AFTER_A_CRASH: Final = re.compile(
    r"an operation was interrupted|it was not unmounted cleanly"
    r"|inode \d+ was deleted while it was open|\S+: \d+ problems? left"
)
"""What fsck may say of an image whose daemon was killed, before the next mount."""


class Failed(Exception):
    """Something is not as it must be."""


class Hang(Failed):
    """Something did not end in time."""


class Site:
    """A folder with an image, formatted here, and its mountpoint."""

    def __init__(self, *, size: str, on_disk: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="daxfs-kill-"))
        shared = None if on_disk or not os.path.isdir("/dev/shm") else "/dev/shm"  # noqa: S108
        self._memory = Path(tempfile.mkdtemp(prefix="daxfs-kill-", dir=shared))
        self.image = self._memory / "image"
        self.mountpoint = self.folder / "mnt"
        self.mountpoint.mkdir()
        self.pid = 0
        """The daemon; 0 if there is none."""
        self.must("mkfs", "--size", size, self.image)

    def notes(self, name: str) -> Path:
        """The file in which the client *name* notes what it does."""
        return self._memory / f"{name}.notes"

    # --- commands ---------------------------------------------------------------------------------

    def start(self, *words: object) -> "subprocess.Popen[str]":
        """Start ``daxfs WORDS``."""
        return subprocess.Popen(
            [sys.executable, "-m", "daxfs", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _search_path()},
        )

    def finish(self, process: "subprocess.Popen[str]", what: str) -> tuple[int, str]:
        """The exit code of a started command and what it said. Failed unless in one line."""
        try:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.release()
            process.kill()
            process.communicate()
            raise Hang(f"{what} did not end") from None
        if process.returncode and process.returncode > 0 and len(err.splitlines()) > 1:
            raise Failed(f"{what} said: {err}")
        return process.returncode, out + err

    def run(self, *words: object) -> tuple[int, str]:
        """The exit code of ``daxfs WORDS`` and what it said."""
        return self.finish(self.start(*words), f"daxfs {words[0]}")

    def must(self, *words: object) -> str:
        """What ``daxfs WORDS`` says, which must succeed."""
        code, said = self.run(*words)
        if code != 0:
            raise Failed(f"daxfs {words[0]} exited with {code}: {said}")
        return said

    # --- the mount --------------------------------------------------------------------------------

    def mount(self, options: str) -> None:
        """Mount, whatever is left of the mount before."""
        self.must("mount", "-o", options, self.image, self.mountpoint)
        control = self.inside(lambda: os.getxattr(self.mountpoint, "user.daxfs.control"))
        self.pid = int(Path(os.fsdecode(control)).stem)

    def unmount(self) -> None:
        """Unmount; the daemon has ended."""
        self.must("umount", self.mountpoint)
        self.wait_gone()

    def signal(self, number: signal.Signals) -> None:
        """Send *number* to the daemon."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait_gone(self, seconds: float = LIMIT_SECONDS) -> None:
        """Wait for the end of the daemon. Hang."""
        if not wait_until(lambda: is_gone(self.pid), seconds):
            pid = self.pid
            self.release()
            raise Hang(f"the daemon {pid} did not end")
        self.pid = 0

    def inside(self, action: Callable[[], T]) -> T:
        """The result of *action*, which touches the mount. Hang, Failed."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                answer: tuple[bool, object] = (True, action())
            except Failed as error:
                answer = (False, str(error))
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writer, "wb") as file:
                pickle.dump(answer, file)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            deadline = time.monotonic() + LIMIT_SECONDS
            data = bytearray()
            while select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                part = os.read(file.fileno(), 1 << 20)
                data += part
                if not part:
                    break
            else:
                self.release()
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise Hang("reading the mount did not end")
        os.waitpid(child, 0)
        good, result = pickle.loads(data)  # noqa: S301  (of a process of our own)
        if not good:
            raise Failed(str(result))
        return result  # type: ignore[no-any-return]

    # --- the image --------------------------------------------------------------------------------

    def is_within_change(self) -> bool:
        """Whether the daemon, which is stopped, is in the middle of a change of metadata."""
        image = np.memmap(self.image, np.uint8, "r")
        return bool(undo.scan(image.data, _super_block(image)))

    def check_crashed(self) -> bool:
        """``fsck -n`` of an image whose daemon died: nothing but what the next mount mends.

        Whether there is a change that the next mount has to undo.
        """
        code, said = self.run("fsck", "-n", self.image)
        bad = [line for line in said.splitlines() if not _AFTER_A_CRASH.search(line)]
        if code not in (0, 4) or (code == 4 and bad):
            raise Failed(f"fsck exited with {code} after the kill: {said}")
        return "an operation was interrupted" in said

    def check_clean(self) -> None:
        """``fsck -n`` of an image that was unmounted finds nothing."""
        code, said = self.run("fsck", "-n", self.image)
        if code != 0:
            raise Failed(f"fsck exited with {code} after the unmount: {said}")

    def poison(self) -> None:
        """Fill the free blocks of the clean image: where one shows through, it is seen."""
        image = np.memmap(self.image, np.uint8, "r+")
        sb = _super_block(image)
        blocks = image[: sb.block_count * layout.BLOCK_SIZE].reshape(-1, layout.BLOCK_SIZE)
        bitmap = blocks[sb.bitmap_start : sb.bitmap_start + sb.bitmap_blocks].tobytes()
        [crc] = struct.unpack("<Q", image[layout.BITMAP_CRC_OFFSET :][:8].tobytes())
        blocks[~decode_bitmap(bitmap, sb, crc)] = POISON

    # --- the end ----------------------------------------------------------------------------------

    def release(self) -> None:
        """Free whoever waits for the mount, by force."""
        for way in ("-f", "-l"):
            subprocess.run(["umount", way, self.mountpoint], capture_output=True, check=False)
        if self.pid:
            self.signal(signal.SIGKILL)
            wait_until(lambda: is_gone(self.pid), 10)
            self.pid = 0

    def remove(self) -> None:
        """Take all away."""
        self.release()
        shutil.rmtree(self._memory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.mountpoint.rmdir()
            self.folder.rmdir()


def _super_block(image: "np.memmap[Any, np.dtype[np.uint8]]") -> layout.Superblock:
    raw = image[layout.SUPER_OFFSET :][: layout.SUPER_SIZE].tobytes()
    return layout.Superblock.decode(raw, len(image) // layout.BLOCK_SIZE)


def is_gone(pid: int) -> bool:
    """Whether all threads of process *pid* have ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return True


def is_stopped(pid: int) -> bool:
    """Whether all threads of process *pid* are stopped, or wait in the kernel, or are gone."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return all((t / "stat").read_text().rpartition(") ")[2][0] in "TDZX" for t in tasks)
    except OSError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for *condition*; False if it did not come true in *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _search_path() -> str:
    ours = str(Path(daxfs.__file__).parents[1])
    return os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH", "")]))
