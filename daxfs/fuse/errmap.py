"""Every exception of a request handler becomes an errno, in this one place.

An exception other than FUSEError that escapes a handler ends the event loop of pyfuse3, and with it
the mount. No other module raises or catches FUSEError.
"""

import errno
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from daxfs.errors import CorruptionError, MediaError
from daxfs.fuse.lowlevel import pyfuse3

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Observer(Protocol):
    """What a handler's owner wants to know about each request."""

    def answered(self, op: str, start_ns: int) -> None:
        """A request *op* that began at *start_ns* (monotonic clock) is about to be answered."""

    def check_medium(self) -> None:
        """Raise MediaError if what was read of the image may not be what it holds."""

    def corrupted(self, error: CorruptionError | MediaError) -> None:
        """A request met damage in the image, or its medium failed."""


S = TypeVar("S", bound=Observer)

Handler = Callable[Concatenate[S, P], Awaitable[T]]


def handler(function: Handler[S, P, T]) -> Callable[Concatenate[S, P], Any]:
    """Make a coroutine function a request handler: it raises nothing but FUSEError.

    OSError becomes its errno, damage of the image EUCLEAN, a medium that fails EIO, a lack of
    memory ENOMEM; anything else is a bug, logged with its traceback, and becomes EIO.
    trio.Cancelled passes.
    """
    op: str = function.__name__

    @functools.wraps(function)
    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        start_ns = time.monotonic_ns()
        try:
            try:
                result = await function(self, *args, **kwargs)
            except Exception:
                self.check_medium()
                raise
            self.check_medium()
            return result
        except Exception as error:
            raise pyfuse3.FUSEError(_errno_of(self, op, error)) from None
        finally:
            self.answered(op, start_ns)

    return answer


def _errno_of(owner: Observer, op: str, error: Exception) -> int:
    if isinstance(error, pyfuse3.FUSEError):
        return int(error.errno)
    if isinstance(error, (CorruptionError, MediaError)):
        owner.corrupted(error)
        return error.errno or errno.EIO
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    log.error("%s failed unexpectedly", op, exc_info=error)
    return errno.EIO
