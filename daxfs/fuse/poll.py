"""Adaptive polling: stay awake for a short while after a small request.

A daemon that sleeps in epoll_wait pays for its wake-up with each request (some 20-50 us). A trio
task that only checkpoints makes the event loop ask epoll without waiting, so that the next request
finds it running. It does so for a window after a request that came soon after the one before;
otherwise it sleeps, so that an idle mount, or one with rare requests, uses no processor time.
Kernel counterpart: adaptive polling of the block layer (blk-mq), io_uring's SQPOLL.
"""

import time

import trio


class Poller:
    """The task that polls, and the clock of requests that it follows."""

    def __init__(self, window_us: int) -> None:
        """*window_us*: how long to stay awake after a request, microseconds; 0: never."""
        self._window_ns = window_us * 1000
        self._last_ns = 0
        self._wanted: trio.Event | None = None

    def note(self) -> None:
        """A request that a program waits for was served just now."""
        now = time.monotonic_ns()
        if self._wanted is not None and now - self._last_ns < self._window_ns:
            self._wanted.set()
        self._last_ns = now

    async def run(self) -> None:
        """Poll while requests keep coming. Runs until it is cancelled."""
        while self._window_ns:
            self._wanted = trio.Event()
            await self._wanted.wait()
            self._wanted = None
            while time.monotonic_ns() - self._last_ns < self._window_ns:
                await trio.lowlevel.checkpoint()
