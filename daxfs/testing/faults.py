"""Faults in the middle of operations: what must hold when one cannot go on.

Each workload of one operation is run on its prepared tree with one fault, at the 1st, 2nd, 3rd ...
place where it can happen:

    blocks, inodes, chunks   the allocator has none left
    journal                  the journal has no room for the entry
    host                     the host has no page for the image, from then on
    host-once                as host, but the next time it has one again
    memory, interrupt        MemoryError or KeyboardInterrupt where daxfs calls a function

The oracles: for want of space the error is ENOSPC and the operation has not happened, or it could
do without; after the others it has happened or not. What is in memory then agrees with the image in
every respect, the filesystem works on, and at the end fsck finds nothing. Where the filesystem
says that it is in doubt (is_in_doubt), blocks and inodes may be lost until the next mount; if it is
read-only as well, all that is for the next mount.
"""

import errno
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import CO_GENERATOR
from itertools import count
from types import FrameType
from typing import Any, Final

import numpy as np

from daxfs.errors import FsckExit, FsError
from daxfs.fs.dir import Directories
from daxfs.fs.namei import Cred
from daxfs.fs.recovery import find_usage
from daxfs.fs.super import FileSystem
from daxfs.fsck.checker import check_image
from daxfs.journal.undo import Transaction
from daxfs.mkfs.format import format_image
from daxfs.ondisk.bitmap import Bools
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.testing.jobs import processes
from daxfs.testing.oracles import Tree, difference, is_mixture, visible_tree
from daxfs.testing.outcome import Figure, Outcome
from daxfs.testing.workloads import ONE, TREES, Workload, workload
from daxfs.units import PAGE_SIZE, PMD_PAGES

SPACE: Final = ("blocks", "inodes", "chunks", "journal", "host", "host-once")
"""Kinds of faults that are a want of space: each place is tried."""
ANYWHERE: Final = {"memory": MemoryError, "interrupt": KeyboardInterrupt}
"""Kinds that can come at any call: as many of them as are asked for, chosen by a seed."""
INODES: Final = 64
CALLS_AT_ONCE: Final = 4
"""Places of each workload and kind of ANYWHERE that are tried in one round."""

_ROOT: Final = Cred(0, 0)
_BEFORE_NS: Final = 10**18
_AFTER_NS: Final = 2 * 10**18
_WORKS: Final = b"afterwards"
_AVOIDED: Final = ("/daxfs/testing/", "/daxfs/trace.py")


class Trigger:
    """Comes to pass at the place number *at* (the first is 1), or with *lasting* from there on."""

    def __init__(self, at: int, lasting: bool = False) -> None:
        self.at = at
        self.lasting = lasting
        self.places = 0

    def pull(self) -> bool:
        """Count one place; whether the fault is here."""
        self.places += 1
        return self.places == self.at or (self.lasting and self.places > self.at)

    @property
    def fired(self) -> bool:
        """Whether it has come to pass."""
        return 0 < self.at <= self.places


# --- where faults come in ------------------------------------------------------------------------


@contextmanager
def inject(fs: FileSystem, kind: str, trigger: Trigger) -> Iterator[None]:
    """Have *trigger* decide over each place of *kind* while the context lasts."""
    if kind in ANYWHERE:
        with _at_calls(trigger, ANYWHERE[kind]):
            yield
        return
    owner, name, failing = {
        "blocks": (fs.blocks, "alloc", _no_space),
        "inodes": (fs.inode_numbers, "alloc", _no_space),
        "chunks": (fs.blocks, "reserve_chunk", _none),
        "journal": (Transaction, "_append", _no_space),
        "host": (fs.image, "reserve", _no_space),
        "host-once": (fs.image, "reserve", _no_space),
    }[kind]
    function = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return failing() if trigger.pull() else function(*args, **kwargs)

    setattr(owner, name, replaced)
    try:
        yield
    finally:
        if owner is Transaction:
            setattr(owner, name, function)
        else:
            delattr(owner, name)


def _no_space() -> None:
    raise FsError(errno.ENOSPC)


def _none() -> None:
    return None


@contextmanager
def _at_calls(trigger: Trigger, error: type[BaseException]) -> Iterator[None]:
    """Raise *error* where daxfs calls a function, its own or another: there it can fail."""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if _can_fail(frame, event) and trigger.pull():
            raise error

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def _can_fail(frame: FrameType, event: str) -> bool:
    if event == "call" and frame.f_code.co_flags & CO_GENERATOR:
        return False  # a generator that goes on takes no memory, and could not even clean up
    path = frame.f_code.co_filename
    return (
        event in ("call", "c_call")
        and "/daxfs/" in path
        and not any(part in path for part in _AVOIDED)
    )


# --- a filesystem to break -----------------------------------------------------------------------


@cache
def _prepared(tree: str, size: int) -> bytes:
    """A clean image with the prepared *tree*."""
    with Image.anonymous(size) as image:
        format_image(image, inodes=INODES)
        fs = _mounted(image)
        fs.now_ns = lambda: _BEFORE_NS  # type: ignore[method-assign]
        TREES[tree](fs)
        fs.unmount()
        fs.persist.close()
        return bytes(image.mem)


def _mounted(image: Image) -> FileSystem:
    persist = Persist(image, "memory")
    fs = FileSystem.mount(image, persist, enable_acl=True, atime="noatime")
    fs.now_ns = lambda: _AFTER_NS  # type: ignore[method-assign]
    return fs


@contextmanager
def _ready(todo: Workload) -> Iterator[FileSystem]:
    """The tree of *todo* on an image of which the host holds what is not zero."""
    raw = _prepared(todo.tree, todo.image_size)
    with Image.anonymous(len(raw)) as image:
        pages = np.frombuffer(raw, np.uint8).reshape(-1, PAGE_SIZE)
        for page in np.flatnonzero(pages.any(axis=1)).tolist():
            start = page * PAGE_SIZE
            image.mem[start : start + PAGE_SIZE] = raw[start : start + PAGE_SIZE]
        fs = _mounted(image)
        try:
            yield fs
        finally:
            fs.persist.close()


def _run(fs: FileSystem, todo: Workload) -> BaseException | None:
    """Run the steps of *todo*; the error that ends it."""
    try:
        for step in todo.steps:
            step.run(fs)
    except (FsError, MemoryError, KeyboardInterrupt) as error:
        return error
    return None


# --- oracles -------------------------------------------------------------------------------------


def audit(fs: FileSystem) -> Iterator[str]:
    """Where what *fs* has in memory does not agree with its image, or with itself."""
    if fs.journal.open is not None or fs.current is not None:
        yield "an operation is still open"
    usage = find_usage(fs.image, fs.persist, fs.sb, clean=False)
    yield from usage.problems
    used = np.frombuffer(fs.blocks.flags, np.bool_)
    yield from _differ(fs, "blocks", used[: fs.sb.block_count], usage.blocks, fs.blocks.free)
    numbers = range(1, fs.sb.inode_count + 1)
    inodes = np.array([fs.inode_numbers.is_used(ino) for ino in numbers])
    yield from _differ(fs, "inodes", inodes, usage.inodes, fs.inode_numbers.free)
    for inode in fs.cached_inodes():
        if inode.encode() != bytes(fs.image.mem[fs.sb.inode_offset(inode.ino) :][:256]):
            yield f"inode {inode.ino} is not as in the image"
        if inode.is_dir and inode.directory is not None:
            fresh = Directories(fs)._build(inode)
            if fresh.names != inode.directory.names:
                yield f"the index of folder {inode.ino} is not as in the image"
    wanted = {chunk for inode in fs.cached_inodes() for chunk in inode.reservations.values()}
    if wanted != set((np.flatnonzero(fs.blocks._reserved) * PMD_PAGES).tolist()):
        yield "chunks are reserved that no file has"


def _differ(fs: FileSystem, what: str, used: Bools, owned: Bools, free: int) -> Iterator[str]:
    """Whether *used*, as the allocator has it, is not what the image says."""
    if (owned & ~used).any():
        yield f"{what} are owned and free"
    if fs.is_in_doubt:
        return
    if (used & ~owned).any():
        yield f"{what} are lost"
    if free != int((~used).sum()):
        yield f"the number of free {what} is wrong"


def _works(fs: FileSystem) -> Iterator[str]:
    """What does not work, if anything: to make a file, write it, and delete it."""
    try:
        file = fs.create(fs.root, _WORKS, 0o600, _ROOT)
    except FsError as error:
        if error.errno != errno.ENOSPC:
            raise
        return
    try:
        fs.write(file, 100, b"works")
        if bytes(fs.read(file, 100, 5)[0]) != b"works":
            yield "what was written afterwards is not there"
    except FsError as error:
        if error.errno != errno.ENOSPC:
            raise
    fs.unlink(fs.root, _WORKS)
    del file
    yield from audit(fs)


def _at_the_end(fs: FileSystem) -> Iterator[str]:
    """Unmount; what fsck says then."""
    tree = visible_tree(fs)
    fs.unmount()
    if fs.is_in_doubt:
        _mounted(fs.image).unmount()
    said: list[str] = []
    if check_image(fs.image, repair=False, say=said.append) != FsckExit.CLEAN:
        yield "; ".join(said)
    with Image.anonymous(fs.image.size) as copy:
        copy.mem[:] = fs.image.mem
        again = _mounted(copy)
        if visible_tree(again) != tree:
            yield f"another mount sees another tree: {difference(visible_tree(again), tree)}"
        again.persist.close()


# --- runs ----------------------------------------------------------------------------------------


def run_space(todo: Workload) -> tuple[Counter[str], list[str]]:
    """*todo* with each fault of SPACE at each place: how many of each kind, and what went wrong."""
    cases = [(kind, at) for kind in SPACE for at in range(1, _places(todo, kind) + 1)]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    while cases:
        with _ready(todo) as fs:
            before, free = visible_tree(fs), fs.blocks.free
            kept = fs.cached_inodes()
            error: BaseException | None = FsError(errno.ENOSPC)
            # As long as it is undone, the same filesystem serves.
            while cases and error is not None:
                kind, at = cases.pop(0)
                counts[kind] += 1
                with inject(fs, kind, Trigger(at, lasting=kind == "host")):
                    error = _run(fs, todo)
                found = [*_undone(fs, error, before, free, todo), *audit(fs)]
                wrong += [f"{todo.name}: {kind} {at}: {text}" for text in found]
            if error is not None:
                error = _run(fs, todo)
                if error is None and visible_tree(fs) != _after(todo.name):
                    wrong.append(f"{todo.name}: without a fault it does something else then")
            kept.clear()
            wrong += [f"{todo.name}: afterwards: {text}" for text in _works_and_ends(fs)]
    return counts, wrong


def _places(todo: Workload, kind: str) -> int:
    """How many places of *kind* there are in *todo*."""
    with _ready(todo) as fs:
        trigger = Trigger(0)
        with inject(fs, kind, trigger):
            _run(fs, todo)
        return trigger.places


def _undone(
    fs: FileSystem, error: BaseException | None, before: Tree, free: int, todo: Workload
) -> Iterator[str]:
    """What of a failed operation is left."""
    if error is None:
        return
    if not isinstance(error, FsError) or error.errno != errno.ENOSPC:
        yield f"it ends in {error!r}"
    tree = visible_tree(fs)
    if tree != before and not (_stores_in_place(todo) and is_mixture(tree, before, tree)):
        yield f"it is not undone: {difference(tree, before)}"
    elif fs.blocks.free != free:
        yield f"{free - fs.blocks.free} blocks are lost"


def _stores_in_place(todo: Workload) -> bool:
    return any(step.data for step in todo.steps)


def _works_and_ends(fs: FileSystem) -> Iterator[str]:
    if not fs.read_only:
        yield from _works(fs)
    yield from _at_the_end(fs)


def run_anywhere(todo: Workload, kind: str, at: int) -> list[str]:
    """*todo* with a fault of *kind* at the call number *at*: what went wrong."""
    with _ready(todo) as fs:
        before = visible_tree(fs)
        kept = fs.cached_inodes()
        with inject(fs, kind, Trigger(at)):
            error = _run(fs, todo)
        found = []
        if error is not None and not isinstance(error, (ANYWHERE[kind], FsError)):
            found.append(f"it ends in {error!r}")
        if fs.read_only and fs.is_in_doubt:
            fs.persist.close()
            fs = _mounted(fs.image)
        tree, after = visible_tree(fs), _after(todo.name)
        mixed = _stores_in_place(todo) and is_mixture(tree, before, after)
        if tree not in (before, after) and not mixed:
            found.append(f"it is neither done nor undone: {difference(tree, before)}")
        found += audit(fs)
        kept.clear()
        found += _works_and_ends(fs)
    return [f"{todo.name}: {kind} {at}: {text}" for text in found]


@cache
def _after(name: str) -> Tree:
    """The tree that the workload *name* makes."""
    todo = workload(name)
    with _ready(todo) as fs:
        _run(fs, todo)
        return visible_tree(fs)


def _task(job: tuple[str, int | None]) -> tuple[Counter[str], list[str]]:
    """One workload with all of SPACE, or with some of ANYWHERE, chosen by a seed."""
    name, seed = job
    todo = workload(name)
    try:
        if seed is None:
            return run_space(todo)
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        chance = random.Random(f"{seed} {name}")
        places = _places(todo, "memory")
        for kind in ANYWHERE:
            for at in chance.sample(range(1, places + 1), min(places, CALLS_AT_ONCE)):
                counts[kind] += 1
                wrong += run_anywhere(todo, kind, at)
        return counts, wrong
    except Exception as error:
        return Counter(), [f"{name}: {error!r} in the test, {_where(error)}"]


def _where(error: BaseException) -> str:
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{at.filename}:{at.lineno}"


def run(
    *,
    seed: int,
    seconds: float = 0.0,
    jobs: int = 1,
    workloads: Sequence[Workload] = ONE,
) -> Outcome:
    """Each fault of SPACE in all *workloads*, and rounds of those of ANYWHERE: one, or as many as
    begin within *seconds*.

    *jobs* processes.
    """
    start = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    names = [todo.name for todo in workloads]

    logging.disable(logging.ERROR)  # what could not be freed is told
    try:
        with processes(jobs) as pool:
            for number in count():
                todo = [(name, seed + number if number else None) for name in names]
                for found, wrong in pool.imap_unordered(_task, todo, chunksize=4):
                    counts += found
                    failures += wrong
                if number and time.monotonic() - start >= seconds:
                    break
    finally:
        logging.disable(logging.NOTSET)
    taken = time.monotonic() - start
    total = counts.total()
    figures: dict[str, Figure] = {f"faults_{kind}": counts[kind] for kind in (*SPACE, *ANYWHERE)}
    figures |= {"faults": total, "workloads": len(names), "failures": len(failures)}
    figures |= {"seconds": taken, "faults_per_s": total / taken, "seed": seed}
    return Outcome("faults", figures, failures)
