"""What a crash can leave: the legal states of an image at each point of a log.

Source of the model: the persistency model of x86 (Pelley et al., "Memory persistency"; PM testing
tools such as Yat and Chipmunk). The domains:

- ``memory``: the program dies, the machine does not. Every store so far is there; the last one may
  be cut, at aligned words if it is short, else at lines and in its first and last line at words.
- ``power``: the caches are lost. Stores to one line of 64 bytes reach the medium in program order,
  so of each line a prefix of its pending stores is there, in aligned words of 8 bytes; lines are
  independent. A line that was flushed is durable with the next fence. One that was stored to but
  not flushed stays pending across fences: that is how missing flushes are found.

A point lists the lines that are pending, the contents that each can have, and the choices of them.
Points of ``power`` are the fences, the ends of operations and the end of the log: a crash in
between leaves a subset of what can be left at the next of them, with the same things legal.

Which choices: all combinations while they are at most ``ALL_MAX``; else none and all; each line
alone kept or lost, with each of its prefixes; each two lines kept or lost; the prefixes in program
order; and ``RANDOM`` seeded ones. Pairs are taken among at most ``PAIR_LINES`` lines, evenly
chosen.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from daxfs.testing.recorder import Begin, Discard, End, Event, Fence, Flush, Part, Store

LINE: Final = 64
WORD: Final = 8
ALL_MAX: Final = 1024
RANDOM: Final = 64
PAIR_LINES: Final = 256
_ROWS: Final = 8192
"""Choices that are made at a time."""

CrashDomain = Literal["memory", "power"]
DOMAINS: Final[tuple[CrashDomain, ...]] = ("memory", "power")

Lines = npt.NDArray[np.uint8]
"""An image as an array of lines: shape (lines, 64)."""
Choices = npt.NDArray[np.uint16]
"""Shape (choices, lines of the point): how many of the line's pending stores are kept."""

_Pending = list[tuple[int, int, bytes]]
"""Stores to one line: event, first byte within the line, bytes."""


class CrashPoint:
    """An event of a log and what can be left by a crash just before it."""

    def __init__(
        self,
        event: int,
        domain: CrashDomain,
        durable: Lines,
        pending: dict[int, _Pending],
        seed: int,
    ) -> None:
        self.event: Final = event
        self.domain: Final = domain
        self._durable = durable
        self._seed = seed
        self.lines: list[int] = []
        """The lines whose contents are open."""
        self.contents: list[list[bytes]] = []
        """For each of them: its bytes with 0, 1, 2, ... of its pending stores kept."""
        self._order: list[tuple[int, int, int]] = []
        """(event, index into lines, how many stores are kept then) of each pending store."""
        for line in sorted(pending):
            self._open(line, pending[line])

    def _open(self, line: int, stores: _Pending) -> None:
        content = bytearray(self._durable[line].tobytes())
        contents, order = [bytes(content)], []
        for event, start, data in stores:
            place = 0
            while place < len(data):
                at = start + place
                part = data[place : place + WORD - at % WORD]
                place += len(part)
                if content[at : at + len(part)] != part:
                    content[at : at + len(part)] = part
                    contents.append(bytes(content))
                    order.append((event, len(self.lines), len(contents) - 1))
        if len(contents) > 1:
            self.lines.append(line)
            self.contents.append(contents)
            self._order += order

    def choices(self, *, pairs: bool = True) -> Iterator[Choices]:
        """The choices, some thousands at a time; one may come twice.

        Not *pairs*: without those of two lines, where there are too many to take all.
        """
        counts = [len(contents) for contents in self.contents]
        if self.domain == "memory":
            yield self._in_order(cut_words=len(self._order) <= WORD)
            return
        total = 1
        for count in counts:
            total *= count
            if total > ALL_MAX:
                yield from self._some(counts, pairs)
                return
        yield np.array(list(product(*map(range, counts))), np.uint16).reshape(total, len(counts))

    def _some(self, counts: Sequence[int], pairs: bool) -> Iterator[Choices]:
        full = np.array(counts, np.uint16) - 1
        lines = len(counts)
        singles = [(line, kept) for line in range(lines) for kept in range(counts[line])]
        rows, kept = np.array(singles).T
        for start in (np.zeros(lines, np.uint16), full.astype(np.uint16)):
            block = np.tile(start, (len(singles), 1))
            block[np.arange(len(singles)), rows] = kept
            yield block
        yield self._in_order(cut_words=False)
        chance = random.Random(f"{self._seed}/{self.event}")
        yield np.array([[chance.randrange(n) for n in counts] for _ in range(RANDOM)], np.uint16)
        if not pairs:
            return
        chosen = np.unique(np.linspace(0, lines - 1, min(lines, PAIR_LINES)).astype(np.int64))
        first, second = np.triu_indices(len(chosen), 1)
        for low in range(0, len(first), _ROWS):
            one, two = chosen[first[low : low + _ROWS]], chosen[second[low : low + _ROWS]]
            row = np.arange(len(one))
            few = np.zeros((len(one), lines), np.uint16)
            few[row, one], few[row, two] = full[one], full[two]
            yield few
            yield full - few

    def _in_order(self, *, cut_words: bool) -> Choices:
        """The prefixes in program order: of words, or of lines but in the first and the last."""
        order = sorted(self._order)
        ends = [order[0][1], order[-1][1]] if order else []
        row = np.zeros(len(self.lines), np.uint16)
        found = [row.copy()]
        for place, (event, index, kept) in enumerate(order):
            row[index] = kept
            following = order[place + 1] if place + 1 < len(order) else None
            if (
                cut_words
                or following is None
                or following[:2] != (event, index)
                or (self.domain == "memory" and index in ends)
            ):
                found.append(row.copy())
        return np.array(found, np.uint16).reshape(len(found), len(self.lines))

    def image_lines(self, choice: Sequence[int]) -> Lines:
        """The contents of ``lines`` by *choice*."""
        raw = b"".join(contents[kept] for contents, kept in zip(self.contents, choice, strict=True))
        return np.frombuffer(raw, np.uint8).reshape(-1, LINE)


def crash_points(
    events: Sequence[Event], durable: Lines, domain: CrashDomain, seed: int = 0
) -> Iterator[CrashPoint]:
    """The points of the log *events*, which began with the image *durable*.

    Between two points *durable* is changed in place to what the events before the later one have
    made certain. A point is to be used before the next is asked for.
    """
    walk = _power if domain == "power" else _memory
    return walk(events, durable, seed)


def crash_images(
    events: Sequence[Event], before: bytes, domain: CrashDomain, seed: int = 0
) -> Iterator[bytes]:
    """Each image that a crash can leave, once, of a log that began with the image *before*.

    For programs of one's own, on small images; whole lines of 64 bytes.
    """
    durable = np.frombuffer(before, np.uint8).reshape(-1, LINE).copy()
    seen = set()
    for point in crash_points(events, durable, domain, seed):
        for choices in point.choices():
            for choice in choices.tolist():
                image = durable.copy()
                image[point.lines] = point.image_lines(choice)
                raw = image.tobytes()
                digest = hashlib.blake2b(raw, digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield raw


def _memory(events: Sequence[Event], durable: Lines, seed: int) -> Iterator[CrashPoint]:
    flat = durable.reshape(-1)
    for number, event in enumerate(events):
        if isinstance(event, Store):
            pending: dict[int, _Pending] = {}
            _pend(pending, number, event)
            yield CrashPoint(number, "memory", durable, pending, seed)
            _apply(flat, event)
        elif isinstance(event, Discard):
            _apply(flat, event)
        elif isinstance(event, End | Part | Begin):
            yield CrashPoint(number, "memory", durable, {}, seed)
    yield CrashPoint(len(events), "memory", durable, {}, seed)


def _power(events: Sequence[Event], durable: Lines, seed: int) -> Iterator[CrashPoint]:
    flat = durable.reshape(-1)
    pending: dict[int, _Pending] = {}
    flushed: dict[int, int] = {}
    for number, event in enumerate(events):
        if isinstance(event, Store):
            _pend(pending, number, event)
        elif isinstance(event, Flush):
            if event.length:
                first, last = event.offset // LINE, (event.offset + event.length - 1) // LINE
                for line in range(first, last + 1):
                    if line in pending:
                        flushed[line] = len(pending[line])
        elif isinstance(event, Fence):
            yield CrashPoint(number, "power", durable, pending, seed)
            for line, count in flushed.items():
                stores = pending.pop(line)
                for _, start, data in stores[:count]:
                    flat[line * LINE + start : line * LINE + start + len(data)] = np.frombuffer(
                        data, np.uint8
                    )
                if stores[count:]:
                    pending[line] = stores[count:]
            flushed.clear()
        elif isinstance(event, Discard):
            _apply(flat, event)
            for line in range(event.offset // LINE, (event.offset + len(event.new)) // LINE):
                pending.pop(line, None)
                flushed.pop(line, None)
        elif isinstance(event, End):
            yield CrashPoint(number, "power", durable, pending, seed)
    yield CrashPoint(len(events), "power", durable, pending, seed)


def _pend(pending: dict[int, _Pending], number: int, store: Store) -> None:
    """Enter *store*, the event *number*, line by line."""
    offset, data = store.offset, store.new
    place = 0
    while place < len(data):
        line, start = divmod(offset + place, LINE)
        part = data[place : place + LINE - start]
        pending.setdefault(line, []).append((number, start, part))
        place += len(part)


def _apply(flat: npt.NDArray[np.uint8], event: Store | Discard) -> None:
    flat[event.offset : event.offset + len(event.new)] = np.frombuffer(event.new, np.uint8)
