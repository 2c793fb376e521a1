"""Load the companion extension before pyfuse3, and do without it where it was not built.

``_lowlevel`` defines functions of libfuse that pyfuse3 calls (see the head of ``_lowlevel.c``).
They are found first only if the module is loaded with RTLD_GLOBAL before pyfuse3 is: every module
of daxfs that uses pyfuse3 gets it from here.

Without the extension a mount works, but a range of a file cannot be taken back from the kernel:
hole pages are evicted a whole file at a time.
"""

import errno
import os
import sys
from types import ModuleType


def _load() -> ModuleType | None:
    if "pyfuse3" in sys.modules:
        return None
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from daxfs.fuse import _lowlevel  # type: ignore[attr-defined]
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(flags)
    return _lowlevel  # type: ignore[no-any-return]


_extension = _load()

import pyfuse3  # noqa: E402  (only now may libfuse's functions be looked up)

__all__ = ["configure", "invalidate_range", "missing", "pyfuse3"]


def configure(max_readahead_bytes: int) -> None:
    """Before ``pyfuse3.init``: agree on at most *max_readahead_bytes* with the kernel."""
    if _extension is not None:
        _extension.configure(max_readahead_bytes)


def missing() -> str | None:
    """After ``pyfuse3.init``: what this mount has to do without, in one line, or None."""
    if _extension is None:
        reason = "the extension daxfs.fuse._lowlevel was not built, or pyfuse3 was loaded before it"
    elif not _extension.has_session():
        reason = "pyfuse3 did not call the extension daxfs.fuse._lowlevel"
    else:
        return None
    return f"{reason}: hole pages are evicted by whole files, and INIT is left as pyfuse3 does it"


def invalidate_range(ino: int, start: int, end: int) -> int:
    """Take the kernel's pages of [*start*, *end*) (bytes) of inode *ino* back, unmapping them.

    Waits for the WRITE of a dirty page, so it must not run on the event loop's thread. Returns 0 or
    a negative errno: -ENOENT, the kernel has forgotten the inode; -ENOTCONN or -ENODEV, the mount
    is gone. (fuse_lowlevel_notify_inval_inode)
    """
    if _extension is not None and _extension.has_session():
        return int(_extension.invalidate_range(ino, start, end - start))
    try:
        pyfuse3.invalidate_inode(ino)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 0
