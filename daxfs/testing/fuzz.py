"""Hostile images by the thousand, on all processors.

Each worker process tries images one after the other (``hostile.Bench``) until the number or the
time is reached. A worker that dies or hangs is a failure of the image that it was at; another one
goes on behind it. A failing image is reduced to the fewest mutations, and named so that it can be
tried again.
"""

import gc
import itertools
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from daxfs.testing.hostile import Bench, Case, limit_time
from daxfs.testing.hostile_mounts import MountBench
from daxfs.testing.jobs import processors
from daxfs.testing.outcome import Outcome

FAILURES_MAX: Final = 20
"""After so many failures a run ends."""
HANG_SECONDS: Final = 900.0
"""A worker that finishes no image in this time hangs where no signal reaches it."""
MEMORY_MAX: Final = 2 << 30
"""Address space that a worker may take beyond what it has at the start."""

_REPORT_SECONDS: Final = 1.0
_GARBAGE_MAX: Final = 20_000
"""Objects made, less those freed, after which a worker looks for cycles."""


def replay(text: str, *, mount: bool = False) -> Outcome:
    """Try the one image that *text* names, as a failure does. ValueError: no such name.

    *mount*: with the real commands and a real mount.
    """
    case = Case.parse(text)
    limit_time()
    _, chosen, _ = case.build()
    outcome = Outcome("fuzz", {"case": text, "mutations": len(chosen)})
    for number, mutation in enumerate(chosen):
        outcome.figures[f"mutation_{number}"] = str(mutation)
    with _bench(mount) as bench:
        message = bench.fails(case)
    if message is not None:
        outcome.failures.append(message)
    return outcome


def fuzz(
    *,
    seed: str,
    images: int | None = None,
    seconds: float | None = None,
    jobs: int | None = None,
    mount: bool = False,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Try *images* images, or for *seconds*, whichever comes first; at least one must be given.

    The same *seed* gives the same images. *mount*: with the real commands and real mounts, some
    hundred times slower. *say* hears of each failure at once.
    """
    if images is None and seconds is None:
        raise ValueError("neither a number of images nor a time")
    started = time.monotonic()
    pool = _Pool(seed, images, seconds, jobs or processors(), mount, say)
    pool.run()
    elapsed = time.monotonic() - started
    tally = pool.tally
    figures: dict[str, int | float | str] = {"seed": seed, "jobs": pool.jobs}
    figures |= {name: tally[name] for name in sorted(tally) if name not in ("cpu_ms", "peak_kb")}
    figures["seconds"] = elapsed
    figures["images_per_s"] = tally["images"] / max(elapsed, 1e-9)
    figures["images_per_cpu_s"] = tally["images"] / max(tally["cpu_ms"] / 1000, 1e-9)
    figures["peak_growth_mib"] = pool.peak_kb / 1024
    return Outcome("fuzz", figures, pool.failures)


def _bench(mount: bool) -> Bench:
    return MountBench() if mount else Bench()


class _Worker:
    """One process and what it last told: the number of the image that it is at."""

    def __init__(self, process: Any, receiver: Connection, at: Any, first: int) -> None:
        self.process = process
        self.receiver = receiver
        self.at = at
        self.seen = first
        self.seen_at = time.monotonic()

    def hangs(self) -> bool:
        """Whether it has been at the same image for too long."""
        now = time.monotonic()
        if self.at.value != self.seen:
            self.seen, self.seen_at = self.at.value, now
        return now - self.seen_at > HANG_SECONDS


class _Pool:
    def __init__(
        self,
        seed: str,
        images: int | None,
        seconds: float | None,
        jobs: int,
        mount: bool,
        say: Callable[[str], None] | None,
    ) -> None:
        self.seed = seed
        self.images = images
        self.deadline = None if seconds is None else time.time() + seconds
        self.jobs = jobs
        self.mount = mount
        self.say = say
        self.tally: Counter[str] = Counter()
        self.peak_kb = 0
        self.failures: list[str] = []
        self._context = multiprocessing.get_context("fork")
        self._workers: list[_Worker] = []

    def run(self) -> None:
        """Run workers until all images are tried."""
        try:
            for first in range(self.jobs):
                self._start(first)
            while self._workers and len(self.failures) < FAILURES_MAX:
                ready = wait([w.receiver for w in self._workers], _REPORT_SECONDS)
                for worker in list(self._workers):
                    if worker.receiver in ready:
                        self._hear(worker)
                    elif worker.hangs():
                        worker.process.kill()
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.join()

    def _start(self, first: int) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        at = self._context.Value("q", first, lock=False)
        process = self._context.Process(
            target=_work,
            args=(self._numbers(first), self.seed, self.deadline, self.mount, at, sender),
        )
        process.start()
        sender.close()
        self._workers.append(_Worker(process, receiver, at, first))

    def _numbers(self, first: int) -> Iterator[int]:
        if self.images is None:
            return itertools.count(first, self.jobs)
        return iter(range(first, self.images, self.jobs))

    def _hear(self, worker: _Worker) -> None:
        """Take what *worker* says: a failure, or at its end its tally; or that it has died."""
        try:
            said = worker.receiver.recv()
        except EOFError:
            self._workers.remove(worker)
            worker.process.join()
            case = Case(f"{self.seed}.{worker.at.value}")
            self._fail(case, f"the worker ended with {worker.process.exitcode}")
            self._start(worker.at.value + self.jobs)
            return
        if isinstance(said, tuple):
            self._fail(*said)
            return
        self._workers.remove(worker)
        worker.process.join()
        self.tally.update(said)
        self.peak_kb = max(self.peak_kb, said["peak_kb"])

    def _fail(self, case: Case, message: str) -> None:
        options = "--mount --replay" if self.mount else "--replay"
        line = f"{message} (scripts/crash-test fuzz {options} {case})"
        self.failures.append(line)
        if self.say is not None:
            self.say(line)


def _work(
    numbers: Iterator[int],
    seed: str,
    deadline: float | None,
    mount: bool,
    at: Any,
    sender: Connection,
) -> None:
    """The life of one worker."""
    _limit_memory()
    limit_time()
    # What was there before is never garbage, and an image leaves few cycles.
    gc.freeze()
    gc.set_threshold(_GARBAGE_MAX)
    base_kb, parent = 0, os.getppid()
    begun = time.process_time()
    with _bench(mount) as bench:
        for number in numbers:
            if deadline is not None and time.time() > deadline:
                break
            if os.getppid() != parent:
                return  # whoever started this run was killed
            at.value = number
            case = Case(f"{seed}.{number}")
            message = bench.fails(case)
            if message is not None:
                sender.send((bench.reduce(case), message))
            base_kb = base_kb or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = bench.tally
    tally["cpu_ms"] = round((time.process_time() - begun) * 1000)
    tally["peak_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base_kb
    sender.send(dict(tally))


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
