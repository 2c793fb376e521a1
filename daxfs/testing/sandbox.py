"""One image on which crash states are tried, patched and restored in place.

A state is judged in two steps. Recovery (the journal's, of daxfs itself) is run for each. What it
leaves is looked up by its *core*, and only a core that was never seen is examined by the oracles.

The core is what anything after recovery depends on: the image without the journal (nothing in it
is valid any more), without the bitmap unless the state word is CLEAN (it is rebuilt), without the
words that nobody acts on (mount count and time, finished sequence number), and without free blocks,
whose contents mean nothing. It is taken as the difference to the ground.

What regular files hold changes what is visible and nothing else. So an image that differs in these
bytes from one that was examined has the findings of that one, with its own bytes in the tree; as
long as the same files have bytes behind their end, which must not show when they grow.

For the first reason two states that differ in blocks alone which nothing owns, before recovery and
after it, are one case (``Verdict.closed_in``): recovery reads the journal and writes what it says.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.journal.undo import Journal
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    STATE_CLEAN,
    STATE_OFFSET,
)
from daxfs.testing.oracles import Findings, MakePersist, dirty_tails, examine
from daxfs.testing.result import Hashes
from daxfs.testing.stage import Ground, PoisonImage
from daxfs.testing.states import LINE, Lines
from daxfs.testing.usage import DATA, FREE, META, Kinds, KindsReader

LineNumbers = npt.NDArray[np.int64]

_LINES_PER_BLOCK: Final = BLOCK_SIZE // LINE
_STATE_LINE: Final = STATE_OFFSET // LINE
_CRC_WORD: Final = BITMAP_CRC_OFFSET % LINE // 8
_FINDINGS_MAX: Final = 4096


class Verdict(NamedTuple):
    """What one state came to."""

    findings: Findings
    skeleton: bytes
    """The core without the bytes of regular files."""
    kinds: Kinds | None
    """What the blocks are after recovery; None if the maps are damaged."""
    stored: LineNumbers
    """The lines that recovery stored to."""

    def closed_in(self, before: Kinds | None) -> bool:
        """Whether recovery left no block in use but those of *before*."""
        if before is None or self.kinds is None:
            return False
        return not self.kinds[before == FREE].any()


class _Touched:
    """An observer that notes which lines are stored to."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def on_store(self, offset: int, data: bytes) -> None:
        if data:
            self.ranges.append((offset // LINE, (offset + len(data) - 1) // LINE + 1))

    def on_flush(self, offset: int, length: int) -> None: ...

    def on_fence(self) -> None: ...

    def lines(self) -> LineNumbers:
        return _concatenate(np.arange(first, end) for first, end in self.ranges)


def _concatenate(arrays: Iterable[npt.NDArray[np.int64]]) -> LineNumbers:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


class Sandbox:
    """An image of the size of *ground*, and the verdicts on it so far."""

    def __init__(self, ground: Ground, make_persist: MakePersist) -> None:
        self.ground: Final = ground
        self.base: Final[Lines] = ground.data.reshape(-1, LINE)
        self.image: Final = PoisonImage.anonymous(len(ground.data))
        self.image.poison = True
        self.lines: Final[Lines] = np.frombuffer(self.image.mem, np.uint8).reshape(-1, LINE)
        self._flat = self.lines.reshape(-1)
        self._kinds = KindsReader(self._flat, ground.sb)
        self._make_persist = make_persist
        self._known: dict[tuple[bytes, bytes], Findings] = {}
        """By the two parts of the core."""
        self._tails: dict[bytes, tuple[tuple[int, int], ...]] = {}
        """Where files end within a page, by the first part."""
        self._models: dict[tuple[bytes, tuple[bool, ...]], Findings] = {}
        """By the first part, and by which files have bytes behind their end."""
        self.examined: set[bytes] = set()
        """The cores that were examined; whoever counts them clears it."""
        self.recoveries = 0
        """How often recovery was run."""
        sb = ground.sb
        self._forgotten = np.zeros(sb.block_count, np.bool_)
        self._forgotten[sb.journal_start : sb.journal_start + sb.journal_blocks] = True
        self._bitmap = slice(sb.bitmap_start, sb.bitmap_start + sb.bitmap_blocks)

    def close(self) -> None:
        """Give the image back."""
        self.image.close()

    def load(self, lines: Lines) -> None:
        """Make *lines* the image."""
        self.lines[:] = lines

    def judge(
        self, durable: Lines, numbers: Sequence[int], contents: Lines, touched: LineNumbers
    ) -> Verdict:
        """The verdict on *durable*, which the image holds, with *contents* in the lines *numbers*.

        *touched* are all lines in which *durable* can differ from the ground. The image holds
        *durable* again afterwards.
        """
        own = np.array(numbers, np.int64)
        self.lines[own] = contents
        noted = _Touched()
        try:
            self._recover(noted)
        except Exception as error:  # whatever it is, it is a finding
            self.load(durable)
            return Verdict(
                Findings(faults=[f"1 mounts: recovery: {error!r}"]), b"", None, noted.lines()
            )
        stored = noted.lines()
        kinds = self._kinds.read()
        skeleton, data = self._core(touched, stored, kinds)
        findings = self._find(skeleton, data)
        if findings is None:
            findings = self._examine(skeleton, data)
            self.load(durable)
        else:
            back = np.concatenate((own, stored))
            self.lines[back] = durable[back]
        return Verdict(findings, skeleton, kinds, stored)

    def _recover(self, noted: _Touched) -> None:
        self.recoveries += 1
        persist = self._make_persist(self.image, "memory")
        persist.observer = noted
        Journal(persist, self.ground.sb).recover()
        persist.observer = None
        persist.close()

    def _find(self, skeleton: bytes, data: bytes) -> Findings | None:
        """What is known of the image: the same, or one with other bytes in its files."""
        findings = self._known.get((skeleton, data))
        if findings is not None:
            return findings
        tails = self._tails.get(skeleton)
        if tails is None:
            return None
        model = self._models.get((skeleton, dirty_tails(self.image.mem, tails)))
        if model is None:
            return None
        return self._note(skeleton, data, model.with_data(self.image.mem))

    def _examine(self, skeleton: bytes, data: bytes) -> Findings:
        if len(self._known) >= _FINDINGS_MAX:
            self._known.clear()
            self._tails.clear()
            self._models.clear()
        findings = examine(self.image, self._make_persist)
        if not findings.faults:
            self._tails[skeleton] = findings.tails
            self._models[skeleton, findings.dirty_tails] = findings
        return self._note(skeleton, data, findings)

    def _note(self, skeleton: bytes, data: bytes, findings: Findings) -> Findings:
        self.examined.add(skeleton + data)
        self._known[skeleton, data] = findings
        return findings

    def _core(
        self, touched: LineNumbers, stored: LineNumbers, kinds: Kinds | None
    ) -> tuple[bytes, bytes]:
        """The core of the image, which differs from the ground in *touched* and *stored* at most.

        In two parts: all but the bytes of regular files, and these.
        """
        state = int(self.lines[_STATE_LINE].view(np.uint64)[0])
        if kinds is None:
            kinds = np.full(self.ground.sb.block_count, META, np.uint8)
        kept = np.where(self._forgotten, FREE, kinds)
        kept[self._bitmap] = META if state == STATE_CLEAN else FREE
        marked = np.zeros(len(self.lines), np.bool_)
        marked[touched] = marked[stored] = True
        where = np.flatnonzero(marked)
        kind = kept[where // _LINES_PER_BLOCK]
        where, kind = where[kind != FREE], kind[kind != FREE]
        now, then = self.lines[where], self.base[where]
        place = np.searchsorted(where, _STATE_LINE)
        if place < len(where) and where[place] == _STATE_LINE:
            words = np.zeros(LINE // 8, np.uint64)
            words[0] = state
            if state == STATE_CLEAN:
                words[_CRC_WORD] = now[place].view(np.uint64)[_CRC_WORD]
            now[place] = words.view(np.uint8)
        differ = (now != then).any(axis=1)
        parts = []
        for chosen in (differ & (kind == META), differ & (kind == DATA)):
            digest = hashlib.blake2b(where[chosen].tobytes(), digest_size=16)
            digest.update(now[chosen].tobytes())
            parts.append(digest.digest())
        return parts[0], parts[1]


class Difference:
    """The difference of an image to the ground as numbers that can be combined by XOR."""

    def __init__(self, lines: Lines, base: Lines, touched: LineNumbers) -> None:
        """Of *lines*, which change only in *touched* (ascending)."""
        self._lines = lines
        self._base = base
        self.touched: Final = touched
        self._last = base[touched].copy()
        self._hashes = np.zeros(len(touched), np.uint64)
        self.update()

    def update(self) -> None:
        """Take over what has changed in the image."""
        now = self._lines[self.touched]
        for index in np.flatnonzero((now != self._last).any(axis=1)).tolist():
            line = int(self.touched[index])
            self._hashes[index] = self._hash(line, now[index].tobytes())
        self._last = now

    def _hash(self, line: int, content: bytes) -> int:
        if content == self._base[line].tobytes():
            return 0
        digest = hashlib.blake2b(content, digest_size=8, key=line.to_bytes(8, "little"))
        return int.from_bytes(digest.digest(), "little")

    def total(self, counts: npt.NDArray[np.bool_]) -> int:
        """The number of the image as far as *counts*, a bool for each line of ``touched``."""
        return int(np.bitwise_xor.reduce(self._hashes[counts]))

    def weights(self, lines: Sequence[int], contents: Sequence[Sequence[bytes]]) -> Hashes:
        """What each of the *contents* of each of *lines* changes in the number."""
        most = max(map(len, contents), default=1)
        weights = np.zeros((len(lines), most), np.uint64)
        for row, (line, options) in enumerate(zip(lines, contents, strict=True)):
            present = int(self._hashes[np.searchsorted(self.touched, line)])
            weights[row, : len(options)] = [
                self._hash(line, content) ^ present for content in options
            ]
        return weights
