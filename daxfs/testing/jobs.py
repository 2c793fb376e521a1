"""The processes that share the work of a run."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Any


def processors() -> int:
    """How many processes to use."""
    return os.cpu_count() or 1


@contextmanager
def processes(
    jobs: int,
    start: Callable[..., object] | None = None,
    arguments: tuple[Any, ...] = (),
    *,
    method: str = "fork",
) -> Iterator[Pool]:
    """A pool of *jobs* processes; each begins by ``start(*arguments)``.

    They end by themselves when the work is done. If it is given up, SIGTERM ends them at once; one
    that holds more than memory takes the signal itself, from *start* on.
    """
    # A new process does not take the signal before it can be ended by it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        pool = get_context(method).Pool(jobs, _start, (start, arguments))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        yield pool
        # Without this, leaving the Pool gives the work up.
        pool.close()
        pool.join()


def _start(start: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    # A handler of this process's parent would be no end: Python runs it when it is next at work,
    # and a process that has just begun to wait for some may never be.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if start is not None:
        start(*arguments)
