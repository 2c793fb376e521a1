"""daxfs with handlers that fail of the requests that pyfuse3 does not know.

lseek raises, fallocate answers twice, ioctl gives no proper answer, copy_file_range keeps its
request until the process ends.
"""

import errno
import logging
import sys

from daxfs.cli.main import main
from daxfs.fuse import lowlevel
from daxfs.fuse.lowlevel import Request
from daxfs.fuse.requests import Requests

log = logging.getLogger("broken")

kept: list[Request] = []


def handle(self: Requests, op: str, request: Request, *args: object) -> None:
    if op == "lseek":
        raise RuntimeError("this handler fails")
    if op == "ioctl":
        lowlevel.reply(op, request, None)
    if op == "copy_file_range":
        kept.append(request)
        log.error("kept")
    if op == "fallocate":
        lowlevel.reply_error(request, errno.EXDEV)
        try:
            lowlevel.reply(op, request, None)
        except ValueError as refusal:
            log.error("%s: refused", refusal)


if __name__ == "__main__":
    Requests.handle = handle  # type: ignore[method-assign,assignment]
    sys.exit(main())
