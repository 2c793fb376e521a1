"""Hostile images through the real commands and a real mount.

Each command ends in time with an exit code of its own, says at most one line on stderr, and never
shows a traceback; the daemon serves until it is unmounted, whatever it meets. See ``hostile`` for
the images.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final

from daxfs.errors import FsckExit
from daxfs.fuse.mountinfo import mount_at
from daxfs.fuse.mounting import detach
from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.testing import mutations
from daxfs.testing.hostile import Bench, Case
from daxfs.testing.hostile_use import Failure

COMMAND_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.01


class MountBench(Bench):
    """Where one process tries hostile images as a user meets them: a context manager."""

    def __enter__(self) -> "MountBench":

        self._folder = Path(tempfile.mkdtemp(prefix="daxfs-hostile-"))
        self._image_path = self._folder / "image"
        self._mountpoint = self._folder / "mnt"
        self._mountpoint.mkdir()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, case: Case) -> None:
        """Try one image. Raises Failure."""
        found, chosen, dice = case.build()
        raw = bytearray(found.raw)
        mutations.apply(found, chosen, raw)
        size = mutations.size_of(found, chosen) + dice.choice([0, 0, 0, 1, 511, -1])
        _write_sparse(self._image_path, bytes(raw)[:size], size)
        self._commands(dice)
        self.tally["images"] += 1
        self.tally["mutations"] += len(chosen)

    def _commands(self, dice: Random) -> None:
        image = str(self._image_path)
        self._run("info", image, codes={0, 1})
        self._run("fsck", "-n", image, codes={0, 4, 8})
        options = dice.choice(["errors=remount-ro", "errors=remount-ro", "ro", "enable_acl"])
        if self._mount(options):
            self.tally["mounts"] += 1
        done, _ = self._run("fsck", "-y", image, codes={0, 1, 4, 5, 8, 12})
        if not done & (FsckExit.UNCORRECTED | FsckExit.OPERATIONAL):
            self._run("fsck", "-n", image, codes={0})

    def _run(self, *words: str, codes: set[int]) -> tuple[int, str]:
        """Run a daxfs command; its exit code, one of *codes*, and what it printed."""
        try:
            result = subprocess.run(
                [sys.executable, "-m", "daxfs", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"daxfs {words[0]} does not end") from None
        said = result.stderr.strip()
        known = result.returncode in codes and "unexpected" not in said
        if not known or "Traceback" in said + result.stdout or said.count("\n"):
            raise Failure(f"daxfs {' '.join(words)} ended with {result.returncode}: {said}")
        if result.returncode and not said and words[0] != "fsck":
            raise Failure(f"daxfs {words[0]} fails without a word")
        self.tally["commands"] += 1
        return result.returncode, result.stdout

    # --- the mount -------------------------------------------------------------------------------

    def _mount(self, options: str) -> bool:
        """Mount the image and use it; False if it is refused."""
        log_path = self._folder / "log"
        argv = [sys.executable, "-m", "daxfs", "mount", "-f", "-o", options]
        with log_path.open("wb") as log:
            daemon = subprocess.Popen(
                [*argv, str(self._image_path), str(self._mountpoint)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            served = self._serve(daemon, options)
        except Failure as failure:
            raise Failure(f"{failure}; the log: {_last(log_path)}") from None
        finally:
            self._end(daemon)
        text = log_path.read_text(errors="replace")
        if "Traceback" in text or "unexpected" in text or "bug" in text:
            raise Failure(f"the daemon's log: {text[-2000:]}")
        if not served and not text.strip().startswith("daxfs mount: "):
            lines = [line for line in text.splitlines() if line.startswith("daxfs mount: ")]
            if len(lines) != 1:
                raise Failure(f"mount is refused without one clear line: {text[-2000:]}")
        return served

    def _serve(self, daemon: "subprocess.Popen[bytes]", options: str) -> bool:
        deadline = time.monotonic() + COMMAND_SECONDS
        while mount_at(str(self._mountpoint)) is None:
            code = daemon.poll()
            if code is not None:
                if code not in (1, 32):
                    raise Failure(f"mount ended with {code}")
                return False
            if time.monotonic() > deadline:
                raise Failure("mount does not end")
            time.sleep(_POLL_SECONDS)
        self._walk(options)
        if daemon.poll() is not None:
            raise Failure(f"the daemon ended with {daemon.returncode}")
        self._run("umount", str(self._mountpoint), codes={0})
        try:
            code = daemon.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure("the daemon does not end") from None
        if code not in (0, 32):
            raise Failure(f"the daemon ended with {code}")
        return True

    def _walk(self, options: str) -> None:
        argv = [sys.executable, "-m", "daxfs.testing.hostile_walk", str(self._mountpoint)]
        walker = subprocess.Popen(
            [*argv, *options.split("=")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._run("map", str(self._mountpoint / "plain"), codes={0, 1})
        try:
            out, said = walker.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            walker.kill()
            raise Failure("a program that uses the mount does not end") from None
        if walker.returncode:
            raise Failure(f"a program that uses the mount: {said.strip()[-2000:]}")
        calls, damage_seen = map(int, out.split())
        self.tally["calls"] += calls
        self.tally["met_damage"] += damage_seen

    def _end(self, daemon: "subprocess.Popen[bytes]") -> None:
        """Leave neither a daemon nor a mount."""
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        with contextlib.suppress(OSError):
            entry = mount_at(str(self._mountpoint))
            if entry is not None:
                detach(entry, lazy=True)


def _write_sparse(path: Path, raw: bytes, size: int) -> None:
    """Make the file *path* of *size* bytes that begins with *raw*; zeroes become holes."""
    with path.open("wb") as file:
        for place in range(0, len(raw), BLOCK_SIZE):
            block = raw[place : place + BLOCK_SIZE]
            if any(block):
                file.seek(place)
                file.write(block)
        file.truncate(size)


def _last(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:].strip()
