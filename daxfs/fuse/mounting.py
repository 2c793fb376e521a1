"""Attach to and detach from the mountpoint: what the session does outside of the event loop.

Kernel counterpart: fuse_session_mount(), umount2(2), fusermount3(1), the bdi attributes of sysfs.

Invariant: after the mount is attached, nothing here touches a path on it from this process's event
loop; what may (umount2, fusermount3, sync) runs in a thread or a process of its own.
"""

import contextlib
import ctypes
import errno
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daxfs.errors import CommandError, MountExit
from daxfs.fuse import guard, preflight
from daxfs.fuse.lowlevel import pyfuse3
from daxfs.fuse.mountinfo import FSTYPE, MountEntry, mount_at, same_filesystem
from daxfs.fuse.options import MountOptions
from daxfs.pmem.image import lock_holders

log = logging.getLogger(__name__)

DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
_MS_RDONLY: Final = 1
_MS_NODIRATIME: Final = 2048
_MS_ATIME_POLICY: Final = {"noatime": 1024, "relatime": 1 << 21, "strictatime": 1 << 24}
MS_ATIME: Final = _MS_NODIRATIME | sum(_MS_ATIME_POLICY.values())
# As of libfuse: what is not allowed is forbidden.
_MS_FORBIDDING: Final = {"suid": 2, "dev": 4}
_MS_OTHERS: Final = {"noexec": 8, "sync": 16, "dirsync": 128}

ANSWER_SECONDS: Final = 3.0
"""A daemon that takes longer to answer is stopped, or was killed and cannot go."""
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a dead daemon's mount answers: the second one, if it died meanwhile."""

_REFUSALS = (os.strerror(errno.EPERM), os.strerror(errno.EACCES))


class _Argument(str):
    """A mount option that may be any bytes: pyfuse3 encodes its options as ASCII."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(sys.getfilesystemencoding(), "surrogateescape")


def failure(message: str) -> CommandError:
    """The error of a mount that failed."""
    return CommandError(message, MountExit.FAILED)


def check_mountpoint(mountpoint: str) -> str:
    """*mountpoint* as a path without symbolic links; CommandError unless it can be mounted on.

    What a dead daemon has left there is detached.
    """
    path = resolve(mountpoint)
    detach_dead(path)
    entry = mount_at(path)
    if entry is not None and entry.fstype == FSTYPE:
        raise failure(
            f"{mountpoint}: {entry.source} is mounted there already: unmount it first, "
            "or take another directory"
        )
    try:
        status = os.stat(path)
    except OSError as error:
        raise failure(_cannot_stat(mountpoint, error)) from None
    if not stat.S_ISDIR(status.st_mode):
        raise failure(f"{mountpoint}: is not a directory: mount on an existing directory")
    return path


def resolve(mountpoint: str) -> str:
    """*mountpoint* without symbolic links; what is mounted there is not asked."""
    folder, name = os.path.split(os.path.abspath(mountpoint))
    path = os.path.join(os.path.realpath(folder), name)
    return path if mount_at(path) is not None else os.path.realpath(path)


def _cannot_stat(mountpoint: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{mountpoint}: no such directory: make it first (mkdir -p)"
    if error.errno == errno.ENOTCONN:
        return f"{mountpoint}: a dead FUSE filesystem is mounted there: unmount it first"
    return f"{mountpoint}: {error.strerror}"


def check_fuse(options: MountOptions) -> None:
    """CommandError where this process cannot make a FUSE mount with *options*."""
    problem = preflight.why_not(preflight.rights(DEVICE))
    if problem is not None:
        raise failure(problem)
    if os.geteuid() == 0:
        return
    if not any(
        os.access(os.path.join(folder, "fusermount3"), os.X_OK)
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
    ):
        raise failure("fusermount3 is missing: install fuse3, or mount as root")
    if options.allow_other and not _user_allow_other():
        raise failure(
            f"option allow_other: only root may use it, unless {FUSE_CONF} says user_allow_other"
        )


def _user_allow_other() -> bool:
    try:
        lines = Path(FUSE_CONF).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def attach(
    operations: "pyfuse3.Operations", image: str, mountpoint: str, options: MountOptions
) -> MountEntry:
    """Mount on *mountpoint* (of check_mountpoint); *image* is the name that mount(8) shows.

    Afterwards ``pyfuse3.main`` serves the mount. Raises CommandError with what libfuse says.
    """
    arguments = {
        "default_permissions",
        f"fsname={_escape(image)}",
        "subtype=" + FSTYPE.removeprefix("fuse."),
        *options.kernel_flags,
    }
    if options.allow_other or os.geteuid() == 0:
        arguments.add("allow_other")
    if options.read_only:
        arguments.add("ro")
    if options.atime == "noatime":
        arguments.add("noatime")
    said, error = _quietly(
        lambda: pyfuse3.init(operations, mountpoint, {_Argument(word) for word in arguments})
    )
    if error is not None:
        raise failure(_why_not(mountpoint, said or str(error))) from None
    for line in said.splitlines():
        log.warning("libfuse: %s", line)
    entry = mount_at(mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        pyfuse3.close()
        raise failure(f"{mountpoint}: the mount was made, but /proc/self/mountinfo lacks it")
    if os.geteuid() == 0 and (options.atime == "strictatime" or not options.diratime):
        # Libfuse knows no such flags. They are of the mount alone, so no request comes of it.
        # What they mean the daemon does; where this is forbidden they are not shown.
        with contextlib.suppress(OSError):
            change_flags(entry, MS_REMOUNT | MS_BIND | mount_flags(options))
    return entry


def mount_flags(options: MountOptions) -> int:
    """The flags of mount(2) that *options* mean."""
    flags = _MS_ATIME_POLICY[options.atime]
    if options.read_only:
        flags |= _MS_RDONLY
    if not options.diratime:
        flags |= _MS_NODIRATIME
    for word, flag in _MS_FORBIDDING.items():
        if word not in options.kernel_flags:
            flags |= flag
    for word, flag in _MS_OTHERS.items():
        if word in options.kernel_flags:
            flags |= flag
    return flags


def change_flags(entry: MountEntry, flags: int) -> None:
    """mount(2) of what is mounted already. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(entry.mountpoint)
    if libc.mount(os.fsencode(entry.source), place, FSTYPE.encode(), flags, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), entry.mountpoint)


def _escape(text: str) -> str:
    """*text* for libfuse's option parser."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _quietly(action: Callable[[], None]) -> tuple[str, Exception | None]:
    """Run *action*; what it and its child processes wrote to stderr, and how it failed."""
    failed: Exception | None = None
    with os.fdopen(os.memfd_create("stderr"), "w+b") as capture:
        stderr = os.dup(2)
        os.dup2(capture.fileno(), 2)
        try:
            action()
        except (RuntimeError, OSError) as error:
            failed = error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        capture.seek(0)
        return capture.read().decode(errors="replace").strip(), failed


def _why_not(mountpoint: str, said: str) -> str:
    """One line of what libfuse and fusermount3 *said*."""
    lines = [line.partition(": ")[2] or line for line in said.splitlines()]
    text = lines[-1] if lines else "mount failed"
    if text.endswith(_REFUSALS) and preflight.in_container():
        # Nothing is missing (check_fuse), so it is the profile.
        text += (
            ": the container's security profile forbids mounting: start it with "
            "--security-opt apparmor=unconfined"
        )
    return f"{mountpoint}: {text}"


def abort(entry: MountEntry) -> None:
    """End the connection of *entry*: every request in the kernel fails, nothing waits.

    For mounts that nobody serves any more. Does nothing where it is not mounted any more, or where
    it is not allowed.
    """
    for place in same_filesystem(entry):
        with contextlib.suppress(OSError):
            Path(guard.ABORT.format(minor=place.minor)).write_text("1")
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.umount2(os.fsencode(place.mountpoint), UMOUNT_NOFOLLOW | MNT_FORCE)


def open_abort(entry: MountEntry) -> int | None:
    """A descriptor to write b"1" to, which does what ``abort`` does; None where there is none.

    While the caller serves the mount it is certain whose connection that is; once the connection is
    gone the descriptor stands for nothing.
    """
    try:
        return os.open(guard.ABORT.format(minor=entry.minor), os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


def detach(entry: MountEntry, *, lazy: bool) -> None:
    """Unmount what is mounted as *entry* says; waits for it. OSError: EBUSY, EINVAL, EPERM, EIO.

    *lazy*: from the view of all, now; the filesystem lives on until the last file is closed.
    """
    top = mount_at(entry.mountpoint)
    if top is None or top.device != entry.device:
        raise OSError(errno.EINVAL, f"{entry.mountpoint}: something else is mounted there")
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if libc.umount2(os.fsencode(entry.mountpoint), flags) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), entry.mountpoint)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", entry.mountpoint]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        busy = os.strerror(errno.EBUSY) in result.stderr
        raise OSError(errno.EBUSY if busy else errno.EIO, result.stderr.strip())


def detach_dead(mountpoint: str) -> bool:
    """Detach the daxfs mounts on top of *mountpoint* whose daemons are gone; whether one was.

    Lazily: programs may have files open there, or be there. Raises CommandError.
    """
    found = False
    while (entry := mount_at(mountpoint)) is not None and is_dead(entry):
        try:
            detach(entry, lazy=True)
        except OSError as error:
            raise failure(f"{mountpoint}: the dead mount there stays: {error.strerror}") from error
        found = True
    return found


def is_dead(entry: MountEntry) -> bool:
    """Whether *entry* is a daxfs mount whose daemon is gone, or was killed and is going.

    A daemon that lives but does not answer, since it was stopped, is not dead.
    """
    if entry.fstype != FSTYPE:
        return False
    answers: list[int] = []

    def ask() -> None:
        """Ask the daemon, with a request whose answer the kernel never has."""
        try:
            os.statvfs(entry.mountpoint)
            answers.append(0)
        except OSError as error:
            answers.append(error.errno or 0)

    asking = threading.Thread(target=ask, daemon=True)  # it may wait for as long as the daemon is
    asking.start()
    asking.join(ANSWER_SECONDS)
    if not answers and _was_killed(entry):
        abort(entry)
        asking.join(ANSWER_SECONDS)
    return bool(answers) and answers[0] in _DEAD


def _was_killed(entry: MountEntry) -> bool:
    """Whether the daemon of *entry* was killed, but waits for itself and so cannot go.

    That is the guard's work (``guard``), unless it was killed too.
    """
    try:
        holders = lock_holders(os.stat(entry.source))
    except OSError:
        return False
    return any(guard.is_dead(pid) for pid in holders)


def set_readahead(device: str, readahead: int) -> None:
    """Set the readahead of the mount *device* to *readahead* bytes; without root: leave it."""
    attribute = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        attribute.write_text(str(readahead >> 10))
    except OSError as error:
        log.info("readahead is left as the kernel has it: %s", error)
