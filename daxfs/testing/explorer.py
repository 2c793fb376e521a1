"""The crash-state explorer: every legal crash state of many workloads, on all processors.

Models: Chipmunk and Vinter, which replay subsets of stores at fences; CrashMonkey for workloads.

    explore(workloads)      a Result, which becomes an Outcome

The modules, in reading order: ``recorder`` (the log), ``states`` (what a crash can leave),
``oracles`` (what must hold), ``stage`` (where workloads run), ``sandbox`` (how a state is judged),
``walker`` (one workload), and this one.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final

from daxfs.pmem.persist import Persist
from daxfs.testing.jobs import processes
from daxfs.testing.oracles import MakePersist
from daxfs.testing.outcome import Outcome
from daxfs.testing.result import Failure, Result
from daxfs.testing.stage import Ground, PlainWorkload, Workload
from daxfs.testing.states import DOMAINS, CrashDomain
from daxfs.testing.trees import TREES
from daxfs.testing.walker import Walker

CHUNK_MIN: Final = 8
CHUNK_MAX: Final = 128
"""Workloads of one task: those that begin with the same step stay together, if there are fewer."""
SHORTENED_MAX: Final = 3
"""Failures whose workload is made as short as possible."""

Progress = Callable[[Result], None]


class _Task:
    """What the processes share: it is there before they are forked, and never pickled."""

    walker: Walker
    workloads: Sequence[Workload]
    deadline: float
    stop_at_first: bool


def explore(
    workloads: Iterable[Workload],
    *,
    make_persist: MakePersist = Persist,
    domains: Sequence[CrashDomain] = DOMAINS,
    limit: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    jobs: int = 1,
    recovery: bool = False,
    stop_at_first: bool = False,
    done: Iterable[Workload] = (),
    progress: Progress | None = None,
) -> Result:
    """Explore the crash states of *workloads*.

    *make_persist* makes the Persist of everything that is recorded or recovered, so that a mutant
    can take its place. *limit*: end with so many distinct states; *seconds*: end after that time;
    both when the workloads that are being explored are done. *recovery*: interrupt recovery too.
    *done*: workloads that were explored: of one that begins like them only the rest is.
    *progress* hears of what was found so far. *jobs* processes; with 1 it is this one.
    """
    # What a mount logs of a damaged image is a finding here, and not for the terminal.
    logging.getLogger("daxfs").addHandler(logging.NullHandler())
    everything = list(workloads)
    task = _Task()
    task.workloads = everything
    task.deadline = float("inf") if seconds is None else time.monotonic() + seconds
    task.stop_at_first = stop_at_first
    new_walker = functools.partial(
        Walker,
        _grounds(everything),
        make_persist=make_persist,
        domains=domains,
        seed=seed,
        stop_at_first=stop_at_first,
        recovery=recovery,
    )
    task.walker = new_walker(done=done)
    total = Result()
    for result in _results(task, jobs):
        total.add(result)
        if progress is not None:
            progress(total)
        if limit is not None and total.distinct.at_most >= limit and len(total.distinct) >= limit:
            break
        if stop_at_first and total.failures:
            break
    total.failures[:SHORTENED_MAX] = [
        _shortened(failure, everything, new_walker) for failure in total.failures[:SHORTENED_MAX]
    ]
    return total


def _grounds(workloads: Sequence[Workload]) -> dict[str, Ground]:
    sizes = {workload.tree: workload.image_size for workload in workloads}
    return {name: Ground.make(name, TREES[name], size) for name, size in sizes.items()}


def _results(task: _Task, jobs: int) -> Iterator[Result]:
    chunks = list(_chunks(task.workloads))
    if jobs == 1:
        for chunk in chunks:
            yield _run(task, chunk)
        return
    global _shared
    _shared = task
    with processes(jobs) as pool:
        yield from pool.imap_unordered(_run_shared, chunks)


_shared: _Task


def _run_shared(chunk: range) -> Result:
    return _run(_shared, chunk)


def _run(task: _Task, chunk: range) -> Result:
    total = Result()
    for index in chunk:
        if time.monotonic() > task.deadline:
            break
        total.add(task.walker.explore(task.workloads[index]))
        if task.stop_at_first and total.failures:
            break
    total.distinct.all()
    total.recovered.all()
    return total


def _chunks(workloads: Sequence[Workload]) -> Iterator[range]:
    start = 0
    for index in range(1, len(workloads) + 1):
        count = index - start
        if index < len(workloads):
            one, two = workloads[index - 1], workloads[index]
            same = len(two.steps) > 1 and one.steps[0].name == two.steps[0].name
            if one.tree == two.tree and (count < CHUNK_MIN or same) and count < CHUNK_MAX:
                continue
        yield range(start, index)
        start = index


def _shortened(
    failure: Failure, workloads: Sequence[Workload], new_walker: Callable[[], Walker]
) -> Failure:
    """*failure*, or one with the same oracle of a workload with fewer steps."""
    name = failure.id.partition("@")[0]
    workload = next(workload for workload in workloads if workload.name == name)
    for count in range(1, len(workload.steps)):
        for steps in combinations(workload.steps, count):
            for other in new_walker().explore(PlainWorkload.of(workload, steps)).failures:
                if other.fault.split()[0] == failure.fault.split()[0]:
                    return other
    return failure


def outcome(result: Result, *, seconds: float, jobs: int, seed: int) -> Outcome:
    """*result* for people and machines."""
    distinct = len(result.distinct)
    figures: dict[str, int | float | str] = {
        "workloads": result.workloads,
        "states": result.states,
        "distinct_states": distinct,
        "recoveries_run": result.recoveries,
        "distinct_recovered_images": len(result.recovered),
        "seconds": seconds,
        "distinct_states_per_s_and_core": distinct / seconds / jobs,
        "recoveries_per_s_and_core": result.recoveries / seconds / jobs,
        "failing_states": result.failing,
        "seed": seed,
    }
    if result.recovery_workloads:
        figures["workloads_with_interrupted_recovery"] = result.recovery_workloads
        figures["states_of_interrupted_recovery"] = result.recovery_states
    failures = [
        f"{failure} (scripts/crash-test replay {failure.id!r})" for failure in result.failures
    ]
    return Outcome("explore", figures, failures)
