"""A repair that is cut off can be started again, wherever it was cut, and loses nothing more.

Each repair is recorded once. Then its image is made again as it was when the repair was cut off:
before each store (domain ``memory``: everything stored so far is there), and at each fence (domain
``power``: only what was flushed and fenced is there; and a random choice of the rest too).
"""

import random
from collections.abc import Iterator

import pytest
from damage import Damaged, Found, listing
from damages import CASES, Case

from daxfs.errors import FsckExit
from daxfs.fsck import checker
from daxfs.ondisk.layout import STATE_ERROR, STATE_OFFSET
from daxfs.pmem.badblocks import TABLE_OFFSET, TABLE_SIZE
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Domain, Persist
from daxfs.units import PAGE_SIZE

LINE = 64
TABLE = range(TABLE_OFFSET, TABLE_OFFSET + TABLE_SIZE)
"""The bad blocks are the medium's: they are mended one by one, whatever the filesystem's state."""
Step = tuple[str, int, bytes | int]
"""("store", offset, data), ("flush", offset, length) or ("fence", 0, 0)"""


class Replay:
    """The damaged image, brought into any state between, and back."""

    def __init__(self, image: Image, dice: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.image = image
        self.dice = dice
        self.kept: dict[int, bytes] = {}
        """The damaged image's pages that were changed."""
        self.steps: list[Step] = []
        """What the last repair did."""
        patch.setattr(checker, "ReservingPersist", self._persist)

    def _persist(self, image: Image, domain: Domain) -> Persist:
        persist = Persist(image, "memory")
        persist.observer = self
        self.steps = []
        return persist

    def on_store(self, offset: int, data: bytes) -> None:
        self._keep(offset, len(data))
        self.steps.append(("store", offset, data))

    def on_flush(self, offset: int, length: int) -> None:
        self.steps.append(("flush", offset, length))

    def on_fence(self) -> None:
        self.steps.append(("fence", 0, 0))

    def _keep(self, offset: int, length: int) -> None:
        for page in range(offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE + 1):
            if page not in self.kept:
                start = page * PAGE_SIZE
                self.kept[page] = bytes(self.image.mem[start : start + PAGE_SIZE])

    def store(self, offset: int, data: bytes) -> None:
        self._keep(offset, len(data))
        self.image.mem[offset : offset + len(data)] = data

    def reset(self) -> None:
        for page, data in self.kept.items():
            self.image.mem[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = data
        self.kept.clear()

    def fsck(self, *, repair: bool) -> tuple[FsckExit, str]:
        said: list[str] = []
        code = checker.check_image(self.image, repair=repair, say=said.append)
        return code, "\n".join(said)

    @property
    def asks_for_a_check(self) -> bool:
        """Whether the state word says that the image is faulty, or cannot be read."""
        self.image.read_badblocks()
        raw, bad = self.image.pread_around(STATE_OFFSET, 8)
        return bool(bad) or int.from_bytes(raw, "little") == STATE_ERROR

    def state(self) -> int:
        """A number that stands for the present state."""
        pages = sorted(self.kept)
        mem = self.image.mem
        return hash(tuple(bytes(mem[p * PAGE_SIZE : (p + 1) * PAGE_SIZE]) for p in pages))

    def states(self, steps: list[Step]) -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
        """Each state that a cut leaves, as the stores that it has."""
        stored: list[tuple[int, bytes]] = []
        flushed: list[int] = []
        durable: list[int] = []
        for what, offset, data in steps:
            if what == "store":
                assert isinstance(data, bytes)
                yield f"before store {len(stored)}", stored[:]
                stored.append((offset, data))
            elif what == "flush":
                # All that was stored to this range before.
                assert isinstance(data, int)
                flushed += [
                    index
                    for index, (start, part) in enumerate(stored)
                    if start < offset + data and offset < start + len(part)
                ]
            else:
                some = durable + [i for i in range(len(stored)) if self.dice.random() < 0.5]
                yield f"fence behind {len(stored)}, some", self._cut(stored, some, durable)
                durable = sorted({*durable, *flushed})
                yield f"fence behind {len(stored)}", [stored[i] for i in durable]

    def _cut(
        self, stored: list[tuple[int, bytes]], some: list[int], whole: list[int]
    ) -> list[tuple[int, bytes]]:
        """The stores *some*; those that are not in *whole* may have kept some lines only."""
        pieces: list[tuple[int, bytes]] = []
        for index in sorted(set(some)):
            offset, data = stored[index]
            if index in whole or self.dice.random() < 0.7:
                pieces.append((offset, data))
                continue
            position = 0
            while position < len(data):
                length = LINE - (offset + position) % LINE
                if self.dice.random() < 0.5:
                    pieces.append((offset + position, data[position : position + length]))
                position += length
        return pieces


def seen_in(image: Image) -> dict[str, Found]:
    """What a user sees, but the size of lost+found: a cut may leave an empty block there."""
    found = listing(image)
    if "lost+found" in found:
        found["lost+found"] = found["lost+found"]._replace(size=0)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_repair_that_is_cut_off_can_be_repeated(
    damaged: Damaged, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.damage(damaged)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with Image.open(str(damaged.path)) as image:
        replay = Replay(image, random.Random(seed), monkeypatch)
        code, text = replay.fsck(repair=True)
        assert code == FsckExit.CORRECTED, text
        steps = replay.steps
        assert any(what == "store" for what, _, _ in steps), "it was recorded"
        expected = seen_in(image)
        replay.reset()
        known = set()
        for name, stores in replay.states(steps):
            for offset, data in stores:
                replay.store(offset, data)
            if replay.state() not in known:
                known.add(replay.state())
                filesystem = [offset for offset, _ in stores if offset not in TABLE]
                if filesystem and not replay.asks_for_a_check:
                    code, text = replay.fsck(repair=False)
                    assert code == FsckExit.CLEAN, f"{name} is not marked: {text}"
                code, text = replay.fsck(repair=True)
                assert code in (FsckExit.CLEAN, FsckExit.CORRECTED), f"{name}: {text}"
                code, text = replay.fsck(repair=False)
                assert code == FsckExit.CLEAN, f"{name}: {text}"
                assert seen_in(image) == expected, name
            replay.reset()
        print(len(known), "states")
