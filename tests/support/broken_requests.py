"""daxfs with handlers that fail of the requests that pyfuse3 does not know.

lseek raises, fallocate answers twice, ioctl does what its command says. copy_file_range keeps its
request, until an ioctl has it answered, or the session has ended if it is of LATE bytes, or the
process has.
"""

import errno
import logging
import sys

from daxfs.cli.main import main
from daxfs.fuse import lowlevel
from daxfs.fuse.lowlevel import Request
from daxfs.fuse.requests import Requests

log = logging.getLogger("broken")

LATE = 100
"""A copy of so many bytes is answered after the end of the session."""

_READ_WRITE = 3 << 30
LONG = _READ_WRITE | 16 << 16 | 0x7801
"""Commands of ioctl. LONG: the answer is longer than was asked for."""
SHORT = _READ_WRITE | 16 << 16 | 0x7802
ECHO = _READ_WRITE | 16383 << 16 | 0x7803
"""Takes and gives as much as the number of a command can say."""
NOTHING = 0x7804
"""Takes and gives nothing."""
DROP = 0x7805
ANSWER_KEPT = 0x7806
RECONFIGURE = 0x7807
"""The handler is replaced while it runs."""

kept: list[tuple[Request, int]] = []


def handle(self: Requests, op: str, request: Request, *args: object) -> None:
    if op == "lseek":
        raise RuntimeError("this handler fails")
    if op == "ioctl":
        _ioctl(request, *args)  # type: ignore[arg-type]
    if op == "copy_file_range":
        length = args[-1]
        assert isinstance(length, int)
        kept.append((request, length))
        log.error("kept %d", len(kept))
    if op == "fallocate":
        lowlevel.reply_error(request, errno.EXDEV)
        try:
            lowlevel.reply(op, request, None)
        except ValueError as refusal:
            log.error("%s: refused", refusal)


def _ioctl(request: Request, fh: int, command: int, argument: bytes, length: int) -> None:
    if command == LONG:
        lowlevel.reply("ioctl", request, bytes(length + 1))
    elif command == SHORT:
        lowlevel.reply("ioctl", request, argument[:4])
    elif command == ECHO:
        lowlevel.reply("ioctl", request, argument)
    elif command == NOTHING:
        lowlevel.reply("ioctl", request, argument[:length])
    elif command == ANSWER_KEPT:
        while kept:
            request_kept, count = kept.pop()
            lowlevel.reply("copy_file_range", request_kept, count)
        lowlevel.reply("ioctl", request, b"")
    elif command == RECONFIGURE:
        lowlevel.configure(1 << 20, lambda *args: handle(None, *args))  # type: ignore[arg-type]
        lowlevel.reply("ioctl", request, b"")
    elif command != DROP:
        lowlevel.reply("ioctl", request, None)


if __name__ == "__main__":
    Requests.handle = handle  # type: ignore[method-assign,assignment]
    try:
        sys.exit(main())
    finally:
        for request, length in kept:
            if length == LATE:
                lowlevel.reply("copy_file_range", request, length)
                log.error("answered late")
