"""Which hole pages the kernel holds: the ranges of zeroes handed out, oldest first.

The kernel keeps what a READ of a hole returned in its page cache. This is the account of it, from
which the evictor takes back the oldest ranges. It is plain data: no clock, no thread, no kernel.

Invariants: the ranges of one inode do not overlap; ``held`` is the sum of their lengths; a range
that is added again is as young as its last addition.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict

from daxfs.units import PAGE_SIZE, align_down, align_up

_NO_LIMIT = 1 << 64

Run = tuple[int, int, int]
"""(inode number, start, end), in bytes."""


class _Range:
    """A range of one inode, in bytes, [start, end)."""

    __slots__ = ("end", "ino", "start")

    def __init__(self, ino: int, start: int, end: int) -> None:
        self.ino = ino
        self.start = start
        self.end = end


class _File:
    """The ranges of one inode by their starts; two lists so that bisect sees plain integers."""

    __slots__ = ("ranges", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ranges: list[_Range] = []


class Ledger:
    """A first-in, first-out account of (inode, range), in whole pages."""

    def __init__(self) -> None:
        self.held = 0
        self._fifo: OrderedDict[_Range, None] = OrderedDict()
        self._files: dict[int, _File] = {}
        # The youngest range, which a sequential reader extends, and where it may grow to.
        self._tail: _Range | None = None
        self._limit = 0

    def __len__(self) -> int:
        return len(self._fifo)

    def add(self, ino: int, start: int, end: int) -> None:
        """The kernel was given zeroes for [*start*, *end*) (bytes, widened to whole pages)."""
        start = align_down(start, PAGE_SIZE)
        end = align_up(end, PAGE_SIZE)
        if start >= end:
            return
        tail = self._tail
        if not (tail is not None and tail.ino == ino and tail.end == start and end <= self._limit):
            self.remove(ino, start, end)
            tail = self._tail
            if tail is None or tail.ino != ino or tail.end != start:
                self._append(_Range(ino, start, end))
                self.held += end - start
                return
        tail.end = end
        self.held += end - start

    def remove(self, ino: int, start: int, end: int) -> None:
        """[*start*, *end*) (bytes) holds no hole pages any more: it was written or truncated."""
        file = self._files.get(ino)
        if file is None:
            return
        start = align_down(start, PAGE_SIZE)
        end = align_up(end, PAGE_SIZE)
        at = max(bisect_right(file.starts, start) - 1, 0)
        while at < len(file.ranges):
            piece = file.ranges[at]
            if piece.start >= end:
                break
            if piece.end <= start:
                at += 1
                continue
            self.held -= min(piece.end, end) - max(piece.start, start)
            if piece.start < start:
                rest = (end, piece.end)
                piece.end = start
                at += 1
                if rest[0] < rest[1]:
                    self._insert(file, _Range(ino, *rest), at, becomes_tail=piece is self._tail)
                    break
            elif piece.end > end:
                file.starts[at] = piece.start = end
                break
            else:
                self._delete(file, at)

    def take(self, keep: int) -> list[Run]:
        """Take the oldest ranges out until at most *keep* bytes are held.

        Returns them sorted, with neighbours joined into runs.
        """
        taken: list[Run] = []
        while self.held > keep:
            piece = next(iter(self._fifo))
            file = self._files[piece.ino]
            at = bisect_left(file.starts, piece.start)
            cut = min(piece.end, align_up(piece.start + self.held - keep, PAGE_SIZE))
            taken.append((piece.ino, piece.start, cut))
            self.held -= cut - piece.start
            if cut < piece.end:
                file.starts[at] = piece.start = cut
            else:
                self._delete(file, at)
        taken.sort()
        runs: list[Run] = []
        for ino, start, end in taken:
            if runs and runs[-1][0] == ino and runs[-1][2] == start:
                runs[-1] = (ino, runs[-1][1], end)
            else:
                runs.append((ino, start, end))
        return runs

    def _append(self, piece: _Range) -> None:
        file = self._files.setdefault(piece.ino, _File())
        at = bisect_left(file.starts, piece.start)
        self._insert(file, piece, at, becomes_tail=True)
        following = at + 1
        self._limit = file.starts[following] if following < len(file.starts) else _NO_LIMIT

    def _insert(self, file: _File, piece: _Range, at: int, *, becomes_tail: bool) -> None:
        file.starts.insert(at, piece.start)
        file.ranges.insert(at, piece)
        self._fifo[piece] = None
        if becomes_tail:
            self._tail = piece

    def _delete(self, file: _File, at: int) -> None:
        piece = file.ranges[at]
        del file.starts[at], file.ranges[at], self._fifo[piece]
        if piece is self._tail:
            self._tail = None
        if not file.ranges:
            del self._files[piece.ino]
