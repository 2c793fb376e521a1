"""Wait for requests: take what is there, stay awake while more is likely, else sleep.

pyfuse3 asks trio twice for each request (for a lock, and whether the device is readable), and a
daemon that sleeps in epoll_wait pays for its wake-up besides. So that part of trio which pyfuse3
uses is replaced in pyfuse3, as its own asyncio support does, by one that

- goes on without a trip through the event loop while requests are pending,
- polls the device for a window after a small request that came soon after the one before, so that
  the next request finds the daemon running (the block layer's and io_uring's adaptive polling),
- sleeps for a moment on the device alone after a large request, which the next one follows,
- otherwise waits as trio does. An idle mount, or one with rare requests, uses no processor time.

Invariant: other tasks of the event loop run at least every YIELD_NS while requests keep coming.
"""

import contextlib
import select
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Final

import trio

from daxfs.fuse.lowlevel import pyfuse3

YIELD_NS: Final = 2_000_000
"""How long requests are taken without a turn for other tasks."""
STREAM_MS: Final = 1
"""How long to wait for the request after a large one."""
SMALL_REQUEST: Final = 32 << 10
"""READs and WRITEs up to this many bytes are waited for one by one, so polling helps them."""


class _ReadLock:
    """Held by the task that waits for the device. Unlike trio.Lock it is not fair, which saves a
    switch of tasks for each request, and taking it is no checkpoint."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False
        self._waiting.unpark()


class Poller:
    """How one mount waits for its requests."""

    def __init__(self, window_us: int) -> None:
        """*window_us*: how long to stay awake after a request, microseconds; 0: not at all."""
        self._window_ns = window_us * 1000
        self._last_ns = 0
        self._busy = False
        self._streaming = False
        self._yielded_ns = 0
        self._poll = select.poll()
        self._fd = -1

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While this is open, ``pyfuse3.main`` waits for requests by ``wait_readable``."""
        stock = pyfuse3.trio  # type: ignore[attr-defined]
        lowlevel = SimpleNamespace(**vars(trio.lowlevel))
        lowlevel.wait_readable = self.wait_readable
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
            **{**vars(trio), "lowlevel": lowlevel, "Lock": _ReadLock}
        )
        try:
            yield
        finally:
            pyfuse3.trio = stock  # type: ignore[attr-defined]

    def note(self, size: int = 0) -> None:
        """A request that moves *size* bytes was served just now."""
        self._streaming = size > SMALL_REQUEST
        if not self._streaming:
            now_ns = time.monotonic_ns()
            self._busy = now_ns - self._last_ns < self._window_ns
            self._last_ns = now_ns

    def pause(self) -> None:
        """A request waits for another task: no time is to be spent on the device alone."""
        self._streaming = self._busy = False

    async def wait_readable(self, fd: int) -> None:
        """Return when *fd* may be readable: the place of trio.lowlevel.wait_readable."""
        if fd != self._fd:
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
        now_ns = time.monotonic_ns()
        if now_ns - self._yielded_ns < YIELD_NS:
            streaming, self._streaming = self._streaming, False
            if self._poll.poll(STREAM_MS if streaming else 0):
                return
            if self._busy:
                end_ns = self._last_ns + self._window_ns
                while time.monotonic_ns() < end_ns:
                    if self._poll.poll(0):
                        return
                self._busy = False
        await trio.lowlevel.wait_readable(fd)
        self._yielded_ns = time.monotonic_ns()
