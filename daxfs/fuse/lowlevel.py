"""Load the companion extension before pyfuse3, and do without it where it was not built.

``_lowlevel`` defines functions of libfuse that pyfuse3 calls (see the head of ``_lowlevel.c``).
They are found first only if the module is loaded with RTLD_GLOBAL before pyfuse3 is: every module
of daxfs that uses pyfuse3 gets it from here.

Without the extension a mount works, but it has no fallocate, no lseek for holes, no copy_file_range
and no ioctl, and a range of a file cannot be taken back from the kernel: hole pages are evicted a
whole file at a time.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

_NAME = "daxfs.fuse._lowlevel"


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or None and why."""
    if "pyfuse3" in sys.modules:
        return None, f"pyfuse3 was loaded before the extension {_NAME}"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        return importlib.import_module(_NAME), ""
    except ModuleNotFoundError:
        return None, f"the extension {_NAME} was not built"
    except ImportError as error:  # it was built with another libfuse, or for another Python
        return None, f"the extension {_NAME} cannot be loaded ({error})"
    finally:
        sys.setdlopenflags(flags)


_extension, _why_not = _load()

import pyfuse3  # noqa: E402  (only now may libfuse's functions be looked up)

from daxfs.fuse.ledger import Run  # noqa: E402

__all__ = [
    "Request",
    "configure",
    "guard",
    "has_lost_page",
    "invalidate",
    "invalidate_attributes",
    "let_kernel_zero",
    "missing",
    "pyfuse3",
    "read_is_cached",
    "reply",
    "reply_error",
    "takes_ranges",
    "write_is_written_back",
]

Request = object
"""Stands for a request that pyfuse3 does not know, until it is answered."""

_MISSING = (
    "no fallocate, no lseek for holes, no copy_file_range, no ioctl, hole pages are evicted by "
    "whole files, and INIT is left as pyfuse3 does it"
)


def configure(
    max_readahead_bytes: int, handle: Callable[..., None] | None, *, cache_symlinks: bool = False
) -> None:
    """Before ``pyfuse3.init``: what pyfuse3 cannot be told.

    *max_readahead_bytes*: agree on at most so many with the kernel. *cache_symlinks*: the kernel
    asks for the target of a symbolic link once, which then is all that sets its access time.
    *handle*: gets, on the event loop's thread, the requests that pyfuse3 does not know:
    ``handle(op, request, *args)`` with

    - ``"fallocate"``: fh, mode, offset, length, uid, gid and pid of the caller
    - ``"lseek"``: fh, offset, whence (SEEK_DATA or SEEK_HOLE)
    - ``"copy_file_range"``: fh_in, offset_in, fh_out, offset_out, length
    - ``"ioctl"``: fh, command, its argument as bytes, the length of the answer

    and answers then or later with ``reply`` or ``reply_error``. A request that is dropped without
    an answer gets EIO. None: the kernel is told that there are no such operations.
    """
    if _extension is not None:
        _extension.configure(max_readahead_bytes, cache_symlinks, handle)


def reply(op: str, request: Request, result: int | bytes | None) -> None:
    """Answer a request of ``handle``: *result* is what the operation *op* returns.

    fallocate: None; lseek: an offset; copy_file_range: how many bytes; ioctl: bytes.
    """
    assert _extension is not None
    if op == "lseek":
        _extension.reply_lseek(request, result)
    elif op == "copy_file_range":
        _extension.reply_write(request, result)
    elif op == "ioctl":
        _extension.reply_ioctl(request, result)
    else:
        _extension.reply_err(request, 0)


def reply_error(request: Request, code: int) -> None:
    """Answer a request of ``handle`` with the errno *code*."""
    assert _extension is not None
    _extension.reply_err(request, code)


def missing() -> str | None:
    """After ``pyfuse3.init``: what this mount has to do without, in one line, or None."""
    if _extension is None:
        reason = _why_not
    elif not _extension.has_session():
        reason = f"pyfuse3 did not call the extension {_NAME}"
    elif not _extension.has_operations():
        return "pyfuse3's libfuse is too old for fallocate, lseek, copy_file_range and ioctl"
    else:
        return None
    return f"{reason}: {_MISSING}"


def takes_ranges() -> bool:
    """After ``pyfuse3.init``: whether ``invalidate`` takes ranges, and not whole files."""
    return _extension is not None and bool(_extension.has_session())


def invalidate(runs: list[Run]) -> tuple[int, int]:
    """Take the kernel's pages of *runs*, (ino, start, end) in bytes, back, unmapping them.

    Waits for the WRITE of a dirty page, so it must not run on the event loop's thread. Returns how
    many bytes the kernel holds no more (it may have forgotten the inode: ENOENT), and the errno of
    what failed last, or 0; ENOTCONN or ENODEV: the mount is gone.
    """
    if _extension is not None and takes_ranges():
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


def guard(memory: memoryview | None) -> None:
    """Survive pages of the mapping *memory* that the host cannot provide; None: no more.

    Such a page is one of zeroes afterwards, and ``has_lost_page`` tells of it. Without the
    extension the process ends by SIGBUS.
    """
    if _extension is not None:
        _extension.guard(memory)


def has_lost_page() -> bool:
    """Whether zeroes may have been read, since ``guard``, for what the host could not provide."""
    return _extension is not None and bool(_extension.has_lost_page())


def read_is_cached() -> bool:
    """In a handler of READ, before it awaits: whether its answer goes to the page cache.

    Otherwise it goes to a program (O_DIRECT). False where that is not known.
    """
    return _extension is not None and bool(_extension.read_is_cached())


def write_is_written_back() -> bool | None:
    """In a handler of WRITE, before it awaits: whether the kernel writes pages back.

    Otherwise a program waits for it in write(2). None where that is not known.
    """
    known: bool | None = None if _extension is None else _extension.write_is_written_back()
    return known


def invalidate_attributes(ino: int) -> bool:
    """Have the kernel ask for the attributes of inode *ino* again; whether it was told.

    Waits neither for pages nor for answers, so it may be called on the event loop's thread.
    """
    return _extension is not None and bool(_extension.invalidate_attributes(ino))


def let_kernel_zero(ino: int) -> bool:
    """True: a READ of zeroes into the page cache, of inode *ino*, may be answered with nothing.

    The kernel zeroes what an answer does not fill of the pages that it reads into, which costs half
    of what a copy does. It takes a short answer for the end of the file, unless the attributes of
    the file were made invalid since it sent the READ: so this is to be called after the READ came
    and before the answer.
    """
    return invalidate_attributes(ino)
