"""``crash-test explore``: every legal crash state of many workloads."""

import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import click

from daxfs.testing.commands.main import COUNT, JOBS, JSON, MINUTES, finish
from daxfs.testing.explorer import explore, outcome
from daxfs.testing.result import Result
from daxfs.testing.states import DOMAINS, CrashDomain
from daxfs.testing.workloads import ONE, Workload, three, two

if TYPE_CHECKING:
    from rich.status import Status

_SAMPLE = 1000
"""Workloads of three operations that are chosen at a time."""


@click.command()
@click.option("--steps", type=click.IntRange(1, 3), default=1, help="Operations of a workload.")
@click.option("--domain", type=click.Choice(DOMAINS), help="Only this one. Default: both.")
@click.option("--states", type=COUNT, help="End after so many distinct states.")
@click.option("--minutes", type=MINUTES, help="End after this time.")
@click.option("--recovery", is_flag=True, help="Interrupt the recovery after each crash too.")
@click.option("--workloads", "most", type=COUNT, help="At most so many workloads.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is chosen at random.")
@JOBS
@JSON
def command(
    steps: int,
    domain: CrashDomain | None,
    states: int | None,
    minutes: float | None,
    recovery: bool,
    most: int | None,
    seed: int,
    jobs: int,
    json: str | None,
) -> None:
    """Crash workloads of one, two or three operations in every legal way, and check each state.

    With three operations only the third is crashed: what a crash in the first two can leave, two
    find out. With a time it goes on with new samples until the time is over; without, it takes
    10,000 of them.

    \b
    Examples:
      scripts/crash-test explore
      scripts/crash-test explore --steps 3 --minutes 10 --seed 7
    """
    started = time.monotonic()
    deadline = None if minutes is None else started + minutes * 60
    total = Result()
    domains = DOMAINS if domain is None else (domain,)
    for batch in _batches(steps, seed, most, forever=minutes is not None or states is not None):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        wanted = None if states is None else states - len(total.distinct)
        if wanted is not None and wanted <= 0:
            break
        with _Progress(total) as progress:
            total.add(
                explore(
                    batch,
                    domains=domains,
                    limit=wanted,
                    seconds=left,
                    seed=seed,
                    jobs=jobs,
                    recovery=recovery,
                    done=two() if steps == 3 else (),
                    progress=progress.show,
                )
            )
    seconds = time.monotonic() - started
    finish(outcome(total, seconds=seconds, jobs=jobs, seed=seed), json=json)


def _batches(steps: int, seed: int, most: int | None, *, forever: bool) -> Iterator[list[Workload]]:
    if steps == 1:
        yield ONE[:most]
    elif steps == 2:
        yield list(two())[:most]
    elif most is not None or not forever:
        yield list(three(seed, most or 10_000))
    else:
        for number in count():
            yield list(three(seed + number, _SAMPLE))


class _Progress:
    """A line on a terminal that tells how far it is."""

    def __init__(self, before: Result) -> None:
        self._before = before
        self._status: Status | None = None

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("recording")
            self._status.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, result: Result) -> None:
        """Show *result*, the present one, on top of what was before."""
        if self._status is not None:
            workloads = self._before.workloads + result.workloads
            states = self._before.distinct.at_most + result.distinct.at_most
            self._status.update(
                f"{workloads:,} workloads, {states:,} states, "
                f"{self._before.failing + result.failing} failing"
            )
