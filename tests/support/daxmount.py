"""A real mount in a process of its own, which cannot outlive or hang the test that made it.

The daemon runs in the foreground (``python -m daxfs mount -f``) with its log in a file. A watchdog
process aborts the connection when a test takes too long, since a process that waits for a hung
FUSE daemon cannot be interrupted, and when the process of the tests dies. An ordinary user's daemon
runs in a mount namespace of its own with an own copy of /dev/fuse, so the machine's device node
keeps its mode.
"""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "daxfs"]
NOBODY = 65534
START_SECONDS = 60
STOP_SECONDS = 60
BUSY_SECONDS = 5
TOOL_SECONDS = 120
WATCHDOG_SECONDS = 270

_BAD_LOG = re.compile(r"Traceback|warning|\berror\b|critical|exception", re.IGNORECASE)


@dataclass(frozen=True)
class OrdinaryUser:
    """A user without rights. prefix: what to put before a command to run it as this user."""

    uid: int
    python: str
    prefix: tuple[str, ...] = ()


def ordinary_user() -> OrdinaryUser | None:
    """A user that can run daxfs; None if that is impossible.

    Where this Python or this repository lies in a folder of root's, the user gets the capability to
    read there, and no other (it may not open devices, nor mount).
    """
    uid = str(NOBODY)
    prefix = ("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups")
    reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    for candidate in (prefix, (*prefix, *reading)):
        probe = run([*candidate, sys.executable, "-c", "import daxfs"], check=False)
        if probe.returncode == 0:
            return OrdinaryUser(NOBODY, sys.executable, candidate)
    return None


def environment(**more: str) -> dict[str, str]:
    """The environment for a daxfs command: this repository first on the module path."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    timeout: float = TOOL_SECONDS,
    user: int | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; a failure shows what it wrote. *user* is a uid and gid."""
    identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    try:
        result = subprocess.run(
            [str(word) for word in argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env=env or environment(),
            input=stdin,
            check=False,
            **identity,  # type: ignore[call-overload]
        )
    except PermissionError as refused:  # the user may not even run the program
        result = subprocess.CompletedProcess(argv, 126, "", str(refused))
    if check and result.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, argv))} exited with {result.returncode}\n"
            f"stdout: {result.stdout[-4000:]}\nstderr: {result.stderr[-4000:]}"
        )
    return result


def daxfs(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a ``daxfs`` command; options as of `run`."""
    return run([*COMMAND, *map(str, arguments)], **options)  # type: ignore[arg-type]


def unavailable() -> str | None:
    """Why this machine cannot mount a FUSE filesystem; None if it can."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "not root, and /dev/fuse may not be opened"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "not root, and fusermount3 is not installed"
    return None


def mount_minor(mountpoint: Path, pid: int | str = "self") -> int | None:
    """Minor device number (the FUSE connection's number) of what is mounted on *mountpoint*.

    Read from mountinfo, since stat(2) of a hung mount hangs too. None if nothing is mounted.
    """
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return None
    minor = None
    for line in lines:
        words = line.split()
        if words[4] == str(mountpoint):
            minor = int(words[2].partition(":")[2])
    return minor


class Control:
    """The directory of FUSE connections (fusectl), mounted by the tests for themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = None
        system = Path("/sys/fs/fuse/connections")
        if os.geteuid() == 0:
            folder.mkdir()
            mounted = run(["mount", "-t", "fusectl", "none", folder], check=False)
            if mounted.returncode == 0:
                self.folder = folder
        elif os.path.ismount(system):
            self.folder = system

    def abort_file(self, minor: int) -> Path | None:
        return None if self.folder is None else self.folder / str(minor) / "abort"

    def close(self) -> None:
        if self.folder is not None and os.geteuid() == 0:
            run(["umount", self.folder], check=False)


class DaxMount:
    """An image and its mount; ``start`` and ``stop`` may be repeated.

    path: where it is mounted. image: the image file, or ":memory:". options: the words of ``-o``.
    """

    def __init__(
        self,
        folder: Path,
        image: Path | str,
        control: Control,
        *,
        options: str = "",
        size: str | None = None,
        user: OrdinaryUser | None = None,
    ) -> None:
        self.folder = folder
        self.image = image
        self.options = options
        self.size = size
        self.user = user
        self.path = folder / "mnt"
        self.path.mkdir()
        self.log_path = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.checked = True
        """Whether `finish` looks at the log and runs fsck; a test of failures may switch it off."""
        self._control = control
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._log_seen = 0
        self._expected: list[re.Pattern[str]] = []
        if user is not None:
            os.chown(self.path, user.uid, user.uid)

    # --- life cycle ---

    def start(self, options: str | None = None) -> "DaxMount":
        """Mount and return when the mount can be used. *options* replaces the former ones."""
        assert self.process is None, "it is mounted already"
        if options is not None:
            self.options = options
        argv = [*COMMAND, "mount", "-f"]
        if self.options:
            argv += ["-o", self.options]
        if self.size is not None:
            argv += ["--size", self.size]
        argv += [str(self.image), str(self.path)]
        env = environment()
        if self.user is not None:
            argv = [*self._own_device(), *self.user.prefix, *argv]
            env |= {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self._runtime_folder())}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.folder
            )
        deadline = time.monotonic() + START_SECONDS
        while mount_minor(self.path, self.process.pid) is None:
            code = self.process.poll()
            if code is not None:
                self.process = None
                raise AssertionError(f"{' '.join(argv)} exited with {code}\n{self.log()}")
            if time.monotonic() > deadline:
                self._end_by_force()
                raise AssertionError(f"no mount after {START_SECONDS} s\n{self.log()}")
            time.sleep(0.01)
        self.watch()
        return self

    def watch(self, seconds: float = WATCHDOG_SECONDS) -> None:
        """Allow *seconds* from now on until the mount is aborted as hung."""
        self._end_watchdog()
        minor = mount_minor(self.path, self.pid)
        abort = None if minor is None else self._control.abort_file(minor)
        deed = f"kill -9 {self.pid}" if abort is None else f"echo 1 > {abort}"
        # The number of a connection passes to another mount as soon as this one is gone.
        still = f"grep -q ':{minor} / {self.path} ' /proc/{self.pid}/mountinfo"
        ended = f'[ "$(timeout {seconds} head -n 1)" = done ]'
        self._watchdog = subprocess.Popen(
            ["sh", "-c", f"{ended} || {{ {still} && {deed}; }}"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Unmount with umount(8) (an ordinary user's with fusermount3) and wait for the daemon."""
        if self.user is None and os.geteuid() == 0:
            argv = ["umount", str(self.path)]
        else:
            argv = [*self.client(), "fusermount3", "-u", str(self.path)]
        self.stop_with(argv)

    def stop_with(self, argv: Sequence[str | Path]) -> None:
        """Unmount by running *argv* and wait for the daemon, which must exit with 0."""
        try:
            deadline = time.monotonic() + BUSY_SECONDS
            while (ended := run(argv, check=False, timeout=STOP_SECONDS)).returncode:
                # Whoever looks at the mounts of the machine keeps one busy for a moment.
                assert "busy" in ended.stderr, ended
                assert time.monotonic() < deadline, ended
                time.sleep(0.1)
            self.wait_stopped()
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            self._end_by_force()
            raise AssertionError(f"{failure}\nthe daemon's log: {self.log()}") from None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_stopped(self) -> None:
        """Wait for the daemon to end by itself; it must exit with 0 and leave no mount."""
        assert self.process is not None
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            holders = self._holders()
            self._end_by_force()
            raise AssertionError(f"the daemon did not end{holders}\n{self.log()}") from None
        left = mount_minor(self.path)
        self._forget()
        if code != 0 or left is not None:
            self._detach()
            raise AssertionError(f"the daemon exited with {code}, mount left: {left}\n{self.log()}")

    def kill(self) -> None:
        """SIGKILL for the daemon, as in a crash, and take the dead mount away."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        self._forget()
        self._detach()

    def remount(self, options: str | None = None) -> None:
        self.stop()
        self.start(options)

    def finish(self) -> None:
        """Teardown: unmount, then complain about a bad log or an image that is not clean."""
        if self.process is not None:
            self.stop()
        if not self.checked:
            return
        self.check_log()
        if self.image != ":memory:":
            self.fsck()

    # --- looking at it ---

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def client(self) -> list[str]:
        """What to put before a command so that it sees the mount and has its owner's rights."""
        if self.user is None:
            return []
        return [
            "nsenter",
            f"--mount=/proc/{self.pid}/ns/mnt",
            "env",
            f"HOME={self.folder}",
            f"XDG_RUNTIME_DIR={self._runtime_folder()}",
            *self.user.prefix,
        ]

    def fsck(self) -> None:
        """``fsck -n`` must find the (unmounted) image clean."""
        daxfs("fsck", "-n", self.image)

    def log(self) -> str:
        """Everything that the daemons of this mount have logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def expect_log(self, pattern: str) -> None:
        """Lines that match *pattern* are no fault in this test."""
        self._expected.append(re.compile(pattern, re.IGNORECASE))

    def check_log(self) -> None:
        """Fail on warnings, errors and tracebacks logged since the last check."""
        log = self.log()
        new, self._log_seen = log[self._log_seen :], len(log)
        bad = [
            line
            for line in new.splitlines()
            if _BAD_LOG.search(line) and not any(known.search(line) for known in self._expected)
        ]
        if bad:
            raise AssertionError("the daemon logged:\n" + new)

    def allocated_bytes(self) -> int:
        """Memory that the image file takes on the host."""
        return os.stat(self.image).st_blocks * 512

    # --- within ---

    def _runtime_folder(self) -> Path:
        folder = self.folder / "run"
        if not folder.exists():
            folder.mkdir(mode=0o700)
            if self.user is not None:
                os.chown(folder, self.user.uid, self.user.uid)
        return folder

    def _own_device(self) -> list[str]:
        """What to put before a command so that /dev/fuse is a node that everybody may open."""
        device = self.folder / "fuse"
        if not device.exists():
            os.mknod(device, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
            device.chmod(0o666)
        script = 'mount --bind "$1" /dev/fuse && shift && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(device)]

    def _holders(self) -> str:
        """The processes whose mount namespaces still have the mount: it lives as long as they."""
        pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        holders = [pid for pid in pids if mount_minor(self.path, pid) is not None]
        return f"; it is still mounted for processes {', '.join(holders)}" if holders else ""

    def _forget(self) -> None:
        self.process = None
        self._end_watchdog()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.communicate(b"done\n", timeout=STOP_SECONDS)
            self._watchdog = None

    def _detach(self) -> None:
        if os.geteuid() == 0:
            run(["umount", "--lazy", self.path], check=False)
        else:
            run(["fusermount3", "-u", "-z", self.path], check=False)

    def _end_by_force(self) -> None:
        """Abort the connection, kill the daemon, detach the mount: whatever state it is in."""
        if self.process is None:
            return
        minor = mount_minor(self.path, self.process.pid)
        abort = None if minor is None else self._control.abort_file(minor)
        if abort is not None:
            with contextlib.suppress(OSError):
                abort.write_text("1")
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._forget()
        self._detach()


@contextlib.contextmanager
def background(argv: Sequence[str | Path], **options: object) -> "Iterator[subprocess.Popen[str]]":
    """A program that runs beside the test, with pipes; killed at the end if it still runs."""
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=TOOL_SECONDS)
