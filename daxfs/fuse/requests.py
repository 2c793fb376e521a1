"""Serve the requests that pyfuse3 does not know, each in a task of its own.

The companion extension hands them over on the event loop's thread while it takes requests from the
device (see ``lowlevel.configure``); they are answered when their handler has returned. A request
whose task is cancelled at the end of the mount is answered by the extension, with EIO.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from daxfs.fuse import lowlevel
from daxfs.fuse.lowlevel import Request, pyfuse3

log = logging.getLogger(__name__)


class Handlers(Protocol):
    """The handlers; each raises nothing but FUSEError (see errmap)."""

    async def fallocate(
        self, fh: int, mode: int, offset: int, length: int, uid: int, gid: int, pid: int
    ) -> None: ...

    async def lseek(self, fh: int, offset: int, whence: int) -> int: ...

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int: ...

    async def ioctl(self, fh: int, command: int, argument: bytes, length: int) -> bytes: ...


class Requests:
    """The requests of one mount."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers: dict[str, Callable[..., Awaitable[Any]]] = {
            "fallocate": handlers.fallocate,
            "lseek": handlers.lseek,
            "copy_file_range": handlers.copy_file_range,
            "ioctl": handlers.ioctl,
        }
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until it is cancelled. To be started before the mount takes requests."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def handle(self, op: str, request: Request, *args: object) -> None:
        """Take *request* for the operation *op*; called by the extension."""
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, op, request, args, name=op)

    async def _serve(self, op: str, request: Request, args: tuple[object, ...]) -> None:
        try:
            lowlevel.reply(op, request, await self._handlers[op](*args))
        except pyfuse3.FUSEError as error:
            lowlevel.reply_error(request, error.errno)
        except Exception:
            log.exception("%s was not answered as it should be", op)
