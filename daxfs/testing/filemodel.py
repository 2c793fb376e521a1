"""What a file may hold after a crash: bytes that are certain, and those that may be there instead.

    put       a change that has returned and is in the image: it must be there
    pend      a change that was cut off, or that only the page cache holds: each byte is the old or
              the new one
    settle    fsync or msync has returned: what was pending there is certain, the last change wins

Invariant: a byte is what ``data`` says, or what any pending change that is not overwritten since
has stored there; the file is at least ``floor`` and at most ``len(data)`` bytes large.
"""

from typing import Final

import numpy as np

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

NOISE_BYTES: Final = 1 << 21
_NOISE: Final[Bytes] = np.random.default_rng(1).integers(1, 256, NOISE_BYTES, np.uint8)
_STEP: Final = 7919


def pattern(number: int, length: int) -> Bytes:
    """The *length* bytes that change *number* stores: no zeroes, and unlike those of others."""
    start = number * _STEP % (NOISE_BYTES - length)
    return _NOISE[start : start + length]


class FileModel:
    """The contents of one file, or of a part of it."""

    def __init__(self, size: int = 0) -> None:
        self.data: Bytes = np.zeros(size, np.uint8)
        self.floor = size
        self.pending: list[tuple[int, Bytes]] = []

    @property
    def size(self) -> int:
        """The size in bytes that a program sees while the mount lives."""
        return len(self.data)

    def put(self, offset: int, values: Bytes) -> None:
        """*values* at *offset* are certain."""
        end = offset + len(values)
        self._reach(end)
        self.data[offset:end] = values
        self._cut(offset, end)
        self.floor = max(self.floor, end)

    def pend(self, offset: int, values: Bytes) -> None:
        """Any part of *values* may be at *offset*."""
        self._reach(offset + len(values))
        self.pending.append((offset, values))

    def settle(self, start: int = 0, end: int | None = None) -> None:
        """What is pending in the bytes *start* .. *end* is certain now."""
        whole = end is None
        end = self.size if end is None else end
        for offset, values in self.pending:
            first, last = max(start, offset), min(end, offset + len(values))
            if first < last:
                self.data[first:last] = values[first - offset : last - offset]
                self.floor = max(self.floor, last)
        self._cut(start, end)
        if whole:
            self.floor = self.size

    def zero(self, start: int, end: int) -> None:
        """The bytes *start* .. *end*, as far as there are any, are zeroes now."""
        self.data[start:end] = 0
        self._cut(start, end)

    def resize(self, size: int) -> None:
        """The file has *size* bytes now."""
        if size < self.size:
            self.data = self.data[:size].copy()
            self._cut(size, 1 << 62)
        self._reach(size)
        self.floor = size

    def _reach(self, end: int) -> None:
        if end > self.size:
            self.data = np.concatenate((self.data, np.zeros(end - self.size, np.uint8)))

    def _cut(self, start: int, end: int) -> None:
        """Nothing is pending in *start* .. *end* any more."""
        kept: list[tuple[int, Bytes]] = []
        for offset, values in self.pending:
            if offset < start:
                kept.append((offset, values[: start - offset]))
            if offset + len(values) > end:
                first = max(offset, end)
                kept.append((first, values[first - offset :]))
        self.pending = kept

    def check(self, found: bytes) -> str | None:
        """What is wrong with *found*, the contents of the file; None if nothing is."""
        actual = np.frombuffer(found, np.uint8)
        if not self.floor <= len(actual) <= self.size:
            return f"{len(actual)} bytes instead of {self.floor} .. {self.size}"
        right = actual == self.data[: len(actual)]
        for offset, values in self.pending:
            part = actual[offset : offset + len(values)]
            right[offset : offset + len(values)] |= part == values[: len(part)]
        if right.all():
            return None
        wrong = np.flatnonzero(~right)
        at = int(wrong[0])
        return (
            f"{len(wrong)} bytes are wrong from {at} to {int(wrong[-1])}: "
            f"{actual[at : at + 8].tobytes().hex()} instead of "
            f"{self.data[at : at + 8].tobytes().hex()}"
        )

    def adopt(self, found: bytes) -> None:
        """The contents are *found*, all of it certain."""
        self.data = np.frombuffer(found, np.uint8).copy()
        self.floor = self.size
        self.pending = []
