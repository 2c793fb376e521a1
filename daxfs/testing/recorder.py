"""The recorder: everything that a program stores through Persist, as a log.

Kernel counterpart: dm-log-writes; the tracers of PM testing tools (Yat, Chipmunk).

    recorder = Recorder(image)
    persist.observer = recorder
    recorder.begin("append")
    program()                       # stores, flushes and fences through persist
    recorder.end()
    persist.observer = None

From the log and the bytes of the image before it, ``states.crash_images`` makes what a crash can
leave:

    for crashed in crash_images(recorder.events, before, "power"):
        check(crashed)

Invariants
- The log is in program order. A store is logged before it takes effect, with the bytes that it
  replaces, so the log can be played forwards and backwards.
- Marks divide the log into phases: what is legal after a crash depends on the phase of its event.
"""

from typing import NamedTuple

from daxfs.pmem.image import Image


class Store(NamedTuple):
    """*new* replaces *old* at byte *offset*."""

    offset: int
    old: bytes
    new: bytes


class Flush(NamedTuple):
    """The lines of *length* bytes at *offset* become durable with the next fence."""

    offset: int
    length: int


class Fence(NamedTuple):
    """What was flushed is durable from here on."""


class Discard(NamedTuple):
    """The host took *old* away and gave *new*, durable at once: no store of the program's."""

    offset: int
    old: bytes
    new: bytes


class Begin(NamedTuple):
    """The operation *name* starts."""

    name: str


class Part(NamedTuple):
    """A part of the running operation is done: it takes several steps, as is documented."""


class End(NamedTuple):
    """The operation has returned."""


Event = Store | Flush | Fence | Discard | Begin | Part | End


class Recorder:
    """The log of one program; an ``Observer`` of its Persist."""

    def __init__(self, image: Image) -> None:
        self._mem = image.mem
        self.events: list[Event] = []

    def on_store(self, offset: int, data: bytes) -> None:
        """See Observer."""
        self.events.append(Store(offset, bytes(self._mem[offset : offset + len(data)]), data))

    def on_flush(self, offset: int, length: int) -> None:
        """See Observer."""
        self.events.append(Flush(offset, length))

    def on_fence(self) -> None:
        """See Observer."""
        self.events.append(Fence())

    def on_discard(self, offset: int, data: bytes) -> None:
        """The host is about to put *data* at *offset*, where a block was freed."""
        self.events.append(Discard(offset, bytes(self._mem[offset : offset + len(data)]), data))

    def begin(self, name: str) -> None:
        """The operation *name* starts here."""
        self.events.append(Begin(name))

    def part(self) -> None:
        """A part of the running operation is done, and stays done whatever follows."""
        self.events.append(Part())

    def end(self) -> None:
        """The running operation returns here."""
        self.events.append(End())
