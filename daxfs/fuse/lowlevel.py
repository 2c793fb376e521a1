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

from daxfs.fuse.ledger import Run  # noqa: E402

__all__ = ["configure", "invalidate", "let_kernel_zero", "missing", "pyfuse3", "read_is_cached"]


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


def invalidate(runs: list[Run]) -> tuple[int, int]:
    """Take the kernel's pages of *runs*, (ino, start, end) in bytes, back, unmapping them.

    Waits for the WRITE of a dirty page, so it must not run on the event loop's thread. Returns how
    many bytes the kernel holds no more (it may have forgotten the inode: ENOENT), and the errno of
    what failed last, or 0; ENOTCONN or ENODEV: the mount is gone.
    """
    if _extension is not None and _extension.has_session():
        done, error = _extension.invalidate(runs)
        return int(done), int(error)
    gone: dict[int, int] = {}
    for ino in {ino for ino, _, _ in runs}:
        try:
            pyfuse3.invalidate_inode(ino)
            gone[ino] = 0
        except OSError as failure:
            gone[ino] = failure.errno or errno.EIO
    done = sum(end - start for ino, start, end in runs if gone[ino] in (0, errno.ENOENT))
    return done, next((code for code in gone.values() if code not in (0, errno.ENOENT)), 0)


def read_is_cached() -> bool:
    """In a handler of READ, before it awaits: whether its answer goes to the page cache.

    Otherwise it goes to a program (O_DIRECT). False where that is not known.
    """
    return _extension is not None and bool(_extension.read_is_cached())


def let_kernel_zero(ino: int) -> bool:
    """True: a READ of zeroes into the page cache, of inode *ino*, may be answered with nothing.

    The kernel then zeroes its pages itself, which costs half of what a copy does, and keeps the
    size of the file (see ``_lowlevel.c``). To be called after the READ came and before the answer.
    """
    return _extension is not None and bool(_extension.let_kernel_zero(ino))
