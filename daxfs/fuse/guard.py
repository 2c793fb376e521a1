"""The guard: a small process that ends the connection of a daemon which died but cannot go.

The thread that takes pages back (``evictor``) may wait for a WRITE that only the event loop can
serve, and no signal ends that wait. When such a daemon is killed, the thread stays, with it the
descriptor of /dev/fuse, and all programs that use the mount hang, for good, since nothing is
answered and nothing fails. So a process beside the daemon waits for the death of the daemon's main
thread and then aborts the connection: every request fails, the thread ends, and the daemon is gone.
A crash that dumps core waits for all threads before the main thread dies, and must be looked for.

Invariants
- The guard does nothing before the main thread is dead. ``Guard.end`` ends it without a deed.
- It never touches another mount: the abort file is opened while the daemon lives, and stands for
  nothing once the connection is gone; without one, the mount is looked up again by its device.
- It is a program of its own, run by its path without the site's packages: standard library only.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from typing import Final

GRACE_SECONDS: Final = 1.0
"""How long a dead daemon has to go by itself where only MNT_FORCE can help it."""

CRASH_SECONDS: Final = 2.0
"""How often the daemon is looked at for a crash of its own; of a kill the kernel tells at once."""

_POLL_SECONDS: Final = 0.02
ABORT: Final = "/sys/fs/fuse/connections/{minor}/abort"
"""The file that ends a connection when something is written to it."""
_PR_SET_PDEATHSIG: Final = 1
_MNT_FORCE: Final = 1
_UMOUNT_NOFOLLOW: Final = 8


class Guard:
    """The guard of this process, which serves the mount with device *device* on *mountpoint*.

    It watches the thread that makes it: the main thread, whose death is that of the daemon.
    """

    def __init__(self, device: str, mountpoint: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        minor = device.partition(":")[2]
        if not _can_abort(minor):
            return  # an ordinary user's, where fusectl is not mounted: nothing would help
        argv = [sys.executable, "-I", "-S", __file__, str(os.getpid()), device, mountpoint]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )

    def end(self) -> None:
        """The connection has ended: there is nothing left to guard."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _can_abort(minor: str) -> bool:
    return os.geteuid() == 0 or os.access(ABORT.format(minor=minor), os.W_OK)


def _watch(pid: int, device: str, mountpoint: str) -> None:
    """Wait for the death of the main thread of *pid*, the parent; end its connection."""
    signals = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    try:
        abort = os.open(ABORT.format(minor=device.partition(":")[2]), os.O_WRONLY)
    except OSError:
        abort = -1
    if is_dead(pid):
        abort = -1  # the number may be that of another connection already
    wait = CRASH_SECONDS
    while not is_dead(pid):
        if signal.sigtimedwait({signal.SIGUSR1}, wait) is not None:
            wait = _POLL_SECONDS  # the signal comes a moment before the death
    if abort >= 0:
        os.write(abort, b"1")
        return
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if not _has_threads(pid):
            return
        time.sleep(_POLL_SECONDS)
    if _is_mounted(device, mountpoint):
        libc.umount2(os.fsencode(mountpoint), _UMOUNT_NOFOLLOW | _MNT_FORCE)


def is_dead(pid: int) -> bool:
    """Whether the main thread of *pid* has ended, or dumps core, which waits for all threads."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return (
                re.search(rb"^(State:\t[ZX]|CoreDumping:\t1)", file.read(), re.MULTILINE)
                is not None
            )
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:  # no descriptor, no memory: who cannot look does not know
        return False


def _has_threads(pid: int) -> bool:
    """Whether threads of the dead process *pid* are left beside its main one."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def _is_mounted(device: str, mountpoint: str) -> bool:
    """Whether the topmost mount on *mountpoint* is that of *device*."""
    place = mountpoint
    for letter in "\\ \t\n":
        place = place.replace(letter, f"\\{ord(letter):03o}")
    top = None
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            if words[4] == os.fsencode(place):
                top = words[2].decode()
    return top == device


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], sys.argv[3])
