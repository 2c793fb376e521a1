"""The walk through one workload: each crash point, each state, each oracle.

A state is new by the hash of its difference to the prepared tree; it is looked for before anything
is done for it. What a prefix of a workload can leave is explored once, however many workloads begin
with it. States that differ in blocks alone that nobody owns are one case (see ``sandbox``).

With *recovery* the mount of what a crash left is recorded too, and each state of a crash during it
must come to the same tree as the recovery that was not interrupted.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.pmem.persist import Persist
from daxfs.testing.oracles import Findings, MakePersist, Tree, difference
from daxfs.testing.recorder import Discard, Event, Recorder, Store
from daxfs.testing.result import Failure, Hashes, Result
from daxfs.testing.sandbox import Difference, LineNumbers, Sandbox, Verdict
from daxfs.testing.stage import Ground, Recording, WatchedFs, Workload, record
from daxfs.testing.stateid import Cut, StateId
from daxfs.testing.states import (
    DOMAINS,
    LINE,
    Choices,
    CrashDomain,
    CrashPoint,
    Lines,
    crash_points,
)
from daxfs.testing.usage import FREE, Kinds

FAILURES_MAX: Final = 3
"""Failures that are told of one workload."""
RECOVERIES_ALIKE: Final = 8
"""Recoveries that are interrupted of those that come to the same by restoring as many lines."""
_LINES_PER_BLOCK: Final = BLOCK_SIZE // LINE

Check = Callable[[Findings], str | None]


def _number(data: bytes) -> np.uint64:
    """*data* as a number, the same in each process."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


class Replay(NamedTuple):
    """One state that was judged again."""

    recording: Recording
    events: list[Event]
    """The log in which the last crash is: of the workload, or of the recovery."""
    durable: Lines
    """What was certain at the last crash."""
    point: CrashPoint
    choice: list[int]
    fault: str | None


class _Log(NamedTuple):
    """A log as it is walked along, and what is judged by."""

    name: str
    """The workload."""
    cuts: tuple[Cut, ...]
    """The crash from which the log is the recovery; empty for the workload itself."""
    durable: Lines
    difference: Difference


class _Phase(NamedTuple):
    """A phase of a log."""

    number: int
    before: Kinds | None
    """What the blocks were when it began."""
    check: Check
    seen: set[int]
    """The numbers of the states that were judged."""


class Walker:
    """The exploration of workloads in one process."""

    def __init__(
        self,
        grounds: dict[str, Ground],
        *,
        make_persist: MakePersist = Persist,
        domains: Sequence[CrashDomain] = DOMAINS,
        seed: int = 0,
        stop_at_first: bool = False,
        recovery: bool = False,
        done: Iterable[Workload] = (),
    ) -> None:
        """*done*: what begins like one of these is not explored up to there."""
        self._grounds = grounds
        self._make_persist = make_persist
        self._domains = domains
        self._seed = seed
        self._failures_max = 1 if stop_at_first else FAILURES_MAX
        self._recovery = recovery
        self._sandbox: Sandbox | None = None
        self._done: set[tuple[str, ...]] = set()
        """Prefixes that were explored: the tree and the names of the steps."""
        for workload in done:
            self._note_done(workload)
        self._result = Result()
        self._distinct: list[Hashes] = []
        self._cases: dict[tuple[int, int], Verdict] = {}
        """Verdicts by phase and by what differs outside of blocks that nobody owned."""
        self._recovered_from: dict[tuple[bytes, int], set[bytes]] = {}
        """What stood in the lines that recovery restored, by what it leaves and their number."""

    # --- a workload ------------------------------------------------------------------------------

    def explore(self, workload: Workload) -> Result:
        """Explore *workload*."""
        self._result = result = Result(workloads=1, recovery_workloads=int(self._recovery))
        sandbox = self.sandbox(workload.tree)
        try:
            recording = self.record(workload)
        except Exception as error:  # whatever it is, it is a finding
            result.failing = 1
            result.failures.append(Failure(workload.name, f"0 runs: {error!r}"))
            return result
        self._distinct = []
        self._cases = {}
        self._recovered_from = {}
        before = sandbox.recoveries
        self._explore(workload, recording, sandbox)
        self._note_done(workload)
        result.recoveries = sandbox.recoveries - before
        salt = _number(workload.tree.encode())
        for numbers in self._distinct:
            result.distinct.add(numbers ^ salt)
        cores = [_number(core) ^ salt for core in sandbox.examined]
        result.recovered.add(np.array(cores, np.uint64))
        sandbox.examined.clear()
        return result

    def _note_done(self, workload: Workload) -> None:
        names = [step.name for step in workload.steps]
        self._done |= {(workload.tree, *names[:count]) for count in range(len(names) + 1)}

    def sandbox(self, tree: str) -> Sandbox:
        """The sandbox of *tree*; the one of another tree is given up."""
        if self._sandbox is None or self._sandbox.ground.name != tree:
            if self._sandbox is not None:
                self._sandbox.close()
            self._sandbox = Sandbox(self._grounds[tree], self._make_persist)
        return self._sandbox

    def record(self, workload: Workload) -> Recording:
        """The log of *workload*. What its steps raise, but for FsError."""
        sandbox = self.sandbox(workload.tree)
        sandbox.load(sandbox.base)
        return record(sandbox.ground, workload, sandbox.image, self._make_persist)

    def _explore(self, workload: Workload, recording: Recording, sandbox: Sandbox) -> None:
        names = [step.name for step in workload.steps]
        known = {
            number
            for number, step in enumerate(recording.step_of)
            if step <= len(names) and (workload.tree, *names[:step]) in self._done
        }
        phases = [
            _Phase(number, used, _legal(legal.fault), set())
            for number, (used, legal) in enumerate(
                zip(recording.kinds_of, recording.phases, strict=True)
            )
        ]
        phase_of = recording.phase_of_events()
        touched = touched_lines(recording.events)
        for domain in self._domains:
            durable = sandbox.base.copy()
            log = _Log(workload.name, (), durable, Difference(durable, sandbox.base, touched))
            for point in crash_points(recording.events, durable, domain, self._seed):
                phase = phases[phase_of[point.event]]
                if phase.number not in known:
                    self._visit(log, point, phase)
                if self._is_enough():
                    return

    def _is_enough(self) -> bool:
        return len(self._result.failures) >= self._failures_max

    # --- a point ---------------------------------------------------------------------------------

    def _visit(self, log: _Log, point: CrashPoint, phase: _Phase) -> None:
        """Judge the states of *point* that are new."""
        diff = log.difference
        diff.update()
        everywhere = np.ones(len(diff.touched), np.bool_)
        total = np.uint64(diff.total(everywhere))
        core = np.uint64(diff.total(_owned(diff.touched, phase.before)))
        weights = diff.weights(point.lines, point.contents)
        owned = _owned(np.array(point.lines, np.int64), phase.before)
        core_weights = np.where(owned[:, None], weights, np.uint64(0))
        index = np.arange(len(point.lines))
        assert self._sandbox is not None
        self._sandbox.load(log.durable)
        for choices in point.choices(pairs=not log.cuts):
            numbers = np.bitwise_xor.reduce(weights[index, choices], axis=1) ^ total
            if not log.cuts:
                self._result.states += len(numbers)
            numbers, first = np.unique(numbers, return_index=True)
            new = [place for place, n in enumerate(numbers.tolist()) if n not in phase.seen]
            if not new:
                continue
            phase.seen.update(numbers[new].tolist())
            if log.cuts:
                self._result.recovery_states += len(new)
            else:
                self._distinct.append(numbers[new])
            rows = choices[first[new]]
            cores = np.bitwise_xor.reduce(core_weights[index, rows], axis=1) ^ core
            self._judge(log, point, phase, rows, cores)
            if self._is_enough():
                return

    def _judge(
        self, log: _Log, point: CrashPoint, phase: _Phase, rows: Choices, cores: Hashes
    ) -> None:
        """Judge the choices *rows*, which leave *cores* outside of blocks that nobody owned."""
        cases, case_of = np.unique(cores, return_inverse=True)
        for case, core in enumerate(cases.tolist()):
            members = np.flatnonzero(case_of == case)
            first = rows[members[0]]
            verdict = self._cases.get((phase.number, core))
            if verdict is None:
                verdict = self._try(log, point, first)
                self._cases[phase.number, core] = verdict
            if verdict.closed_in(phase.before):
                self._conclude(log, point, phase, first, verdict, len(members))
            else:
                for row in rows[members]:
                    self._conclude(log, point, phase, row, self._try(log, point, row), 1)
            if self._is_enough():
                return

    def _try(self, log: _Log, point: CrashPoint, row: npt.NDArray[np.uint16]) -> Verdict:
        assert self._sandbox is not None
        contents = point.image_lines(row.tolist())
        return self._sandbox.judge(log.durable, point.lines, contents, log.difference.touched)

    def _conclude(
        self,
        log: _Log,
        point: CrashPoint,
        phase: _Phase,
        row: npt.NDArray[np.uint16],
        verdict: Verdict,
        count: int,
    ) -> None:
        fault = phase.check(verdict.findings)
        if fault is not None:
            self._result.failing += count
            if not self._is_enough():
                row, fault = self._reduce(log, point, phase, row, fault)
                cuts = (*log.cuts, Cut.of(point, row.tolist()))
                self._result.failures.append(Failure(str(StateId(log.name, cuts)), fault))
        elif self._recovery and not log.cuts:
            self._interrupt_recovery(log, point, phase, row, verdict)

    def _reduce(
        self,
        log: _Log,
        point: CrashPoint,
        phase: _Phase,
        row: npt.NDArray[np.uint16],
        fault: str,
    ) -> tuple[npt.NDArray[np.uint16], str]:
        """A choice near *row* that fails too, with as few lines as possible lost, or kept."""
        best, said = row, fault
        full = np.array([len(contents) - 1 for contents in point.contents], np.uint16)
        for target in (full, np.zeros_like(full)):
            trial, text = row.copy(), fault
            for line in np.flatnonzero(trial != target).tolist():
                changed = trial.copy()
                changed[line] = target[line]
                verdict = self._try(log, point, changed)
                worse = phase.check(verdict.findings)
                if worse is not None:
                    trial, text = changed, worse
            if np.count_nonzero(trial != target) < _exceptions(best, full):
                best, said = trial, text
        return best, said

    # --- again ----------------------------------------------------------------------------------

    def again(self, workload: Workload, cuts: Sequence[Cut]) -> Replay:
        """Judge the one state of *workload* that *cuts* name. ValueError if there is none."""
        recording = self.record(workload)
        events = recording.events
        sandbox = self.sandbox(workload.tree)
        lines = sandbox.base
        touched = touched_lines(events)
        for cut in cuts[:-1]:
            durable, point = _find_point(events, lines, cut, self._seed)
            sandbox.load(durable)
            sandbox.lines[point.lines] = point.image_lines(cut.choice(point))
            lines = sandbox.lines.copy()
            events = record_recovery(sandbox, self._make_persist)
            touched = np.union1d(touched, touched_lines(events))
        durable, point = _find_point(events, lines, cuts[-1], self._seed)
        sandbox.load(durable)
        choice = cuts[-1].choice(point)
        contents = point.image_lines(choice)
        verdict = sandbox.judge(durable, point.lines, contents, touched)
        legal = recording.phases[recording.phase_of_events()[cuts[0].event]]
        fault = _legal(legal.fault)(verdict.findings)
        return Replay(recording, events, durable, point, choice, fault)

    # --- recovery --------------------------------------------------------------------------------

    def _interrupt_recovery(
        self,
        log: _Log,
        point: CrashPoint,
        phase: _Phase,
        row: npt.NDArray[np.uint16],
        verdict: Verdict,
    ) -> None:
        """Explore what a crash leaves during the mount that follows the crash of *row*."""
        assert self._sandbox is not None
        sandbox = self._sandbox
        sandbox.lines[point.lines] = point.image_lines(row.tolist())
        restored = sandbox.lines[verdict.stored].tobytes()
        alike = self._recovered_from.setdefault((verdict.skeleton, len(verdict.stored)), set())
        if restored in alike or len(alike) >= RECOVERIES_ALIKE:
            sandbox.load(log.durable)
            return
        alike.add(restored)
        start = sandbox.lines.copy()
        events = record_recovery(sandbox, self._make_persist)
        touched = np.union1d(log.difference.touched, touched_lines(events))
        tree = verdict.findings.tree
        inner = _Phase(
            phase.number,
            phase.before,
            _legal(lambda found: None if found == tree else _other(found, tree)),
            set(),
        )
        cuts = (*log.cuts, Cut.of(point, row.tolist()))
        for domain in self._domains:
            durable = start.copy()
            again = _Log(log.name, cuts, durable, Difference(durable, sandbox.base, touched))
            for inner_point in crash_points(events, durable, domain, self._seed):
                self._visit(again, inner_point, inner)
        sandbox.load(log.durable)


def record_recovery(sandbox: Sandbox, make_persist: MakePersist) -> list[Event]:
    """The log of a mount of the image of *sandbox*, which is another one afterwards."""
    recorder = Recorder(sandbox.image)
    persist = make_persist(sandbox.image, "memory")
    persist.observer = sandbox.image.recorder = recorder
    recorder.begin("mount")
    try:
        WatchedFs.mount(sandbox.image, persist, enable_acl=True)
    finally:
        persist.observer = sandbox.image.recorder = None
        persist.close()
    recorder.end()
    return recorder.events


def _find_point(
    events: Sequence[Event], start: Lines, cut: Cut, seed: int
) -> tuple[Lines, CrashPoint]:
    """The point of the log *events* at which *cut* is, and what is durable there. ValueError."""
    durable = start.copy()
    for point in crash_points(events, durable, cut.domain, seed):
        if point.event == cut.event:
            return durable, point
    raise ValueError(f"there is no crash point {cut.event} in this log")


def _other(found: Tree, tree: Tree) -> str:
    return f"4 single: an interrupted recovery comes to another tree: {difference(found, tree)}"


def _legal(fault: Callable[[Tree], str | None]) -> Check:
    """What the oracles of the image say, and then *fault* of the tree."""

    def check(findings: Findings) -> str | None:
        return findings.faults[0] if findings.faults else fault(findings.tree)

    return check


def _exceptions(row: npt.NDArray[np.uint16], full: npt.NDArray[np.uint16]) -> int:
    """How many lines the id of *row* names."""
    return min(int(np.count_nonzero(row)), int(np.count_nonzero(row != full)))


def _owned(lines: LineNumbers, kinds: Kinds | None) -> npt.NDArray[np.bool_]:
    """For each of *lines* whether its block is in use."""
    if kinds is None:
        return np.ones(len(lines), np.bool_)
    return np.not_equal(kinds[lines // _LINES_PER_BLOCK], FREE)


def touched_lines(events: Sequence[Event]) -> LineNumbers:
    """The lines that the log *events* stores to, ascending."""
    ranges = [
        np.arange(event.offset // LINE, (event.offset + len(event.new) - 1) // LINE + 1)
        for event in events
        if isinstance(event, Store | Discard) and event.new
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *ranges]))
