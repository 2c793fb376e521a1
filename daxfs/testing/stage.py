"""Where workloads run: a small image, a filesystem that tells the recorder of each operation.

PoisonImage     an image in which freed blocks are filled with ``oracles.STALE``
WatchedFs       a FileSystem whose operations begin and end in the log, under a clock of its own
Ground          a prepared tree as bytes, on which workloads begin
record          the log of one workload, and what is legal in each phase of it
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from daxfs.errors import FsError
from daxfs.fs.core import Operation
from daxfs.fs.inode import Inode
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_SIZE, ROOT_INO, Superblock
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.testing.oracles import STALE, Legal, MakePersist, Tree, visible_tree
from daxfs.testing.recorder import Begin, End, Event, Part, Recorder
from daxfs.testing.usage import FREE, Kinds, block_kinds

_START_NS: Final = 10**18
_IDENTITY: Final = UUID(int=1)
_STEP_NS: Final = 10**9


class Step(Protocol):
    """An operation of a workload."""

    @property
    def name(self) -> str: ...

    @property
    def run(self) -> Callable[[FileSystem], None]: ...


class Workload(Protocol):
    """What is explored: *steps*, one after the other, on a tree that ``prepare`` makes."""

    @property
    def name(self) -> str: ...

    @property
    def tree(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def steps(self) -> Sequence[Step]: ...


class PlainWorkload(NamedTuple):
    """A workload of any steps."""

    name: str
    tree: str
    image_size: int
    steps: Sequence[Step]

    @classmethod
    def of(cls, workload: Workload, steps: Sequence[Step]) -> "PlainWorkload":
        """*workload* with other *steps*; its name is ``tree/step+step``."""
        name = f"{workload.tree}/{'+'.join(step.name for step in steps)}"
        return cls(name, workload.tree, workload.image_size, steps)


class PoisonImage(Image):
    """An image that fills what is discarded with STALE, once ``poison`` is set."""

    poison = False
    recorder: Recorder | None = None

    def discard(self, offset: int, length: int) -> bool:
        """Fill *length* bytes at *offset*; before ``poison`` is set as in Image."""
        if not self.poison:
            return super().discard(offset, length)
        data = bytes([STALE]) * length
        if self.recorder is not None:
            self.recorder.on_discard(offset, data)
        self.mem[offset : offset + length] = data
        return True


IN_PLACE: Final = frozenset({"write", "copy_range"})
"""Operations that store file data in place: words of it may be old or new until they return."""
IN_PARTS: Final = frozenset({"write", "copy_range", "fallocate"})
"""Operations of several transactions where they are long; what is done of them stays done."""
OPERATIONS: Final = (
    *("create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"),
    *("read", "write", "setattr", "setxattr", "removexattr", "readlink", "readdir"),
    *("fallocate", "copy_range", "fsync", "sync", "open", "release", "forget", "unmount"),
    "remount",
)
"""The methods of FileSystem that may store."""


class WatchedFs(FileSystem):
    """A FileSystem whose operations are watched once ``watch`` is called."""

    _clock = _START_NS
    _depth = 0
    _recording: "Recording | None" = None
    _call = ""

    def now_ns(self) -> int:
        """A time that depends on the number of operations alone."""
        return self._clock

    def watch(self, recording: "Recording") -> None:
        """Tell *recording* of each operation from here on."""
        self._recording = recording

    @contextmanager
    def operation(self) -> Iterator[Operation]:
        """As Core.operation."""
        with super().operation() as op:
            yield op
        if self._recording is not None and self._call in IN_PARTS and self._depth:
            self._recording.part(self)

    def _run(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._depth or self._recording is None:
            return call(self, *args, **kwargs)
        self._depth, self._call = 1, name
        self._clock += _STEP_NS
        self._recording.begin(name)
        try:
            return call(self, *args, **kwargs)
        finally:
            self._recording.end(self)
            self._depth = 0


def _watched(name: str) -> Callable[..., Any]:
    call = getattr(FileSystem, name)

    @functools.wraps(call)
    def run(self: WatchedFs, *args: Any, **kwargs: Any) -> Any:
        return self._run(name, call, *args, **kwargs)

    return run


for _name in OPERATIONS:
    setattr(WatchedFs, _name, _watched(_name))


@dataclass
class Ground:
    """A prepared tree: the bytes of its clean image, free blocks full of STALE."""

    name: str
    data: npt.NDArray[np.uint8]
    sb: Superblock
    tree: Tree

    @classmethod
    def make(cls, name: str, prepare: Callable[[FileSystem], None], size: int) -> "Ground":
        """Run *prepare* on an empty filesystem of *size* bytes."""
        with PoisonImage.anonymous(size) as image:
            sb = format_image(image, identity=_IDENTITY)
            _set_root_times(image, sb)
            persist = Persist(image, "memory")
            fs = WatchedFs.mount(image, persist, enable_acl=True, discard=False)
            prepare(fs)
            fs.unmount()
            fs = WatchedFs.mount(image, persist, enable_acl=True, discard=False)
            tree = visible_tree(fs)
            fs.unmount()
            persist.close()
            data = np.frombuffer(bytes(image.mem), np.uint8).copy()
        kinds = block_kinds(data, sb)
        assert kinds is not None, "the prepared tree is damaged"
        data.reshape(-1, BLOCK_SIZE)[kinds == FREE] = STALE
        return cls(name, data, sb, tree)


def _set_root_times(image: Image, sb: Superblock) -> None:
    """Give the root the time of the clock here: a ground is the same each time it is made."""
    offset = sb.inode_offset(ROOT_INO)
    root = Inode(ROOT_INO, image.mem[offset : offset + INODE_SIZE])
    root.atime_ns = root.mtime_ns = root.ctime_ns = root.crtime_ns = _START_NS
    image.mem[offset : offset + INODE_SIZE] = root.encode()


class Recording:
    """The log of one workload, and the phases that its marks divide it into."""

    def __init__(self, image: PoisonImage, ground: Ground) -> None:
        tree = ground.tree
        self.recorder: Final = Recorder(image)
        self._image = image
        self._sb = ground.sb
        self._tree = tree
        self._kinds = self._kinds_now()
        self.step = 0
        """Steps of the workload that have begun."""
        self.phases: list[Legal] = [Legal("the start", tree, tree)]
        self.step_of: list[int] = [0]
        """How many steps had begun in each phase."""
        self.kinds_of: list[Kinds | None] = [self._kinds]
        """What the blocks were when each phase began."""
        self._stored = 0

    @property
    def events(self) -> list[Event]:
        """The log."""
        return self.recorder.events

    def phase_of_events(self) -> list[int]:
        """The phase of a crash just before each event, and behind the last."""
        phases = itertools.accumulate(
            isinstance(event, Begin | Part | End) for event in self.events
        )
        found = list(phases)
        return [*found, found[-1] if found else 0]

    def begin(self, name: str) -> None:
        """The operation *name* starts."""
        self.recorder.begin(name)
        self._enter(Legal(name, self._tree, self._tree, name in IN_PLACE))

    def part(self, fs: FileSystem) -> None:
        """A part of it is done."""
        self._advance(fs)
        self.recorder.part()
        last = self.phases[-1]
        self._enter(Legal(last.name, self._tree, self._tree, last.mixed))

    def end(self, fs: FileSystem) -> None:
        """It has returned."""
        self._advance(fs)
        self.recorder.end()
        self._enter(Legal(self.phases[-1].name, self._tree, self._tree))
        fs.blocks.flush_discards()

    def _enter(self, phase: Legal) -> None:
        self.phases.append(phase)
        self.step_of.append(self.step)
        self.kinds_of.append(self._kinds)

    def _kinds_now(self) -> Kinds | None:
        return block_kinds(np.frombuffer(self._image.mem, np.uint8), self._sb)

    def _advance(self, fs: FileSystem) -> None:
        """See what the tree is now: what is legal after the phase."""
        if len(self.events) == self._stored:
            return
        self._stored = len(self.events)
        recorder, self._image.recorder = self._image.recorder, None
        self._tree = visible_tree(fs)
        self._image.recorder = recorder
        self._kinds = self._kinds_now()
        self.phases[-1].after = self._tree


def record(ground: Ground, workload: Workload, image: PoisonImage, make: MakePersist) -> Recording:
    """Run *workload* on *image*, which holds *ground*; it is another one afterwards.

    What a step raises, but for FsError, is raised here.
    """
    recording = Recording(image, ground)
    persist = make(image, "memory")
    persist.observer = image.recorder = recording.recorder
    recording.begin("mount")
    try:
        fs = WatchedFs.mount(image, persist, enable_acl=True)
        recording.end(fs)
        fs.watch(recording)
        for step in workload.steps:
            recording.step += 1
            try:
                step.run(fs)
            except FsError:
                continue
        if len(workload.steps) == 1:
            recording.step += 1
            fs.unmount()
    finally:
        persist.observer = image.recorder = None
        persist.close()
    return recording
