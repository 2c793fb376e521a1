"""Errors that carry an errno, and the exit codes of the commands.

Everything below the FUSE shell reports a failure as an OSError with a meaningful errno: the shell
passes it to the kernel, the commands print it. ``assert`` is for bugs of ours only, never for what
an image or a request says.
"""

import enum
import errno
import os


class FsError(OSError):
    """A filesystem operation that failed with *code*, an errno."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(code, message or os.strerror(code))


class CorruptionError(FsError):
    """The image holds something that daxfs never writes (EUCLEAN)."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EUCLEAN, message)


class MediaError(FsError):
    """The medium could not return the bytes (EIO)."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


class BadDataError(MediaError):
    """The medium could not return, or take, bytes of a file: its metadata are not concerned.

    *pos*: the first byte of the file that is concerned.
    """

    def __init__(self, message: str, pos: int) -> None:
        super().__init__(message)
        self.pos = pos


def ends_transfer(error: OSError) -> bool:
    """Whether a write or copy that meets *error* on the way returns what was done before it."""
    return error.errno == errno.ENOSPC or isinstance(error, BadDataError)


class CommandError(Exception):
    """What a person did wrong: one line that says what, and what to do. Commands print it."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class MountExit(enum.IntEnum):
    """Exit codes of ``daxfs mount`` and ``daxfs umount``, after mount(8)."""

    OK = 0
    USAGE = 1
    SYSTEM = 2
    INTERNAL = 4
    INTERRUPTED = 8
    FAILED = 32


class FsckExit(enum.IntFlag):
    """Exit codes of ``daxfs fsck``, after fsck(8); they are ORed."""

    CLEAN = 0
    CORRECTED = 1
    REBOOT = 2
    UNCORRECTED = 4
    OPERATIONAL = 8
    USAGE = 16
    CANCELED = 32
