"""One hostile image: make it, use it in all ways, repair it, use it again.

What must hold
- It is refused with a clear error, or works: each operation succeeds or fails with an errno that
  makes sense. No other exception, no endless loop, no growth of memory, no store where none may go.
- A mount that met damage marks the image as damaged.
- A check changes nothing; behind a repair a check finds nothing, and nothing meets damage.

The image is patched and restored in place in anonymous memory: nothing is formatted or copied for
each of them but its own bytes.
"""

import errno
import json
import logging
import os
import resource
import signal
from collections import Counter
from random import Random
from types import FrameType, TracebackType
from typing import Final, NamedTuple

from daxfs.errors import CommandError, CorruptionError, FsckExit
from daxfs.fs.super import FileSystem
from daxfs.fsck.checker import check_image
from daxfs.inspect.image_info import read_image
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, STATE_ERROR, STATE_OFFSET, Superblock
from daxfs.pmem.image import ANONYMOUS_PATH, Image
from daxfs.pmem.persist import Persist
from daxfs.testing import mutations
from daxfs.testing.hostile_use import Complaints, Failure, Stores, User
from daxfs.testing.mutations import Mutation
from daxfs.testing.specimens import NAMES, Specimen, specimen

CPU_SECONDS_MAX: Final = 10.0
"""Processor time that one image may take: hundreds of times what the slowest sound one takes."""
GROWTH_MAX: Final = 96 << 20
"""Bytes by which one image may raise the peak of the memory in use."""

_SPECIMEN_WEIGHTS: Final = {
    "clean": 1,
    "maps": 4,
    "tree": 4,
    "dirty": 1,
    "orphans": 4,
    "cut": 3,
    "error": 1,
    "full": 2,
    "chunks": 1,
}


class ByteDice(Random):
    """A Random that takes its choices from given bytes, and zeroes behind their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._bits = int.from_bytes(data, "little")

    def getrandbits(self, k: int) -> int:
        """The next *k* bits, rounded up to whole bytes."""
        value = self._bits & (1 << k) - 1
        self._bits >>= k + 7 & ~7
        return value

    def random(self) -> float:
        """The next two bytes as a fraction."""
        return self.getrandbits(16) / (1 << 16)


class Case(NamedTuple):
    """What identifies a hostile image, and how it is used: its text replays it.

    *seed* is any text; one that begins with ``x`` is hexadecimal: the bytes of a ByteDice.
    """

    seed: str
    only: tuple[int, ...] | None = None
    """Which of its mutations are made; None: all."""

    @classmethod
    def parse(cls, text: str) -> "Case":
        """What ``str`` of a Case says. ValueError."""
        seed, slash, numbers = text.partition("/")
        return cls(seed, tuple(int(n) for n in numbers.split(",") if n) if slash else None)

    def __str__(self) -> str:
        only = "" if self.only is None else "/" + ",".join(map(str, self.only))
        return self.seed + only

    def build(self) -> tuple[Specimen, list[Mutation], Random]:
        """The specimen, its mutations, and the dice for what is done with it."""
        raw = self.seed[1:] if self.seed.startswith("x") else None
        dice = Random(self.seed) if raw is None else ByteDice(bytes.fromhex(raw))
        name = dice.choices(NAMES, [_SPECIMEN_WEIGHTS[name] for name in NAMES])[0]
        found = specimen(name)
        count = dice.choice([1, 1, 1, 1, 2, 2, 3, 5, 9])
        chosen = [mutations.choose(found, dice) for _ in range(count)]
        if self.only is not None:
            chosen = [chosen[index] for index in self.only]
        return found, chosen, dice


class _WatchedImage(Image):
    """An image whose discards are seen."""

    stores: Stores | None = None

    def discard(self, offset: int, length: int) -> bool:
        if self.stores is not None:
            self.stores.on_discard(offset, length)
        return super().discard(offset, length)


class Bench:
    """Where one process tries hostile images, one after the other: a context manager."""

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()
        self.complaints = Complaints()
        log = logging.getLogger("daxfs")
        log.handlers[:] = [self.complaints]
        log.propagate = False
        self._images: dict[int, _WatchedImage] = {}
        self._peak = _peak_bytes()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for image in self._images.values():
            image.close()

    def image(self, found: Specimen, chosen: list[Mutation]) -> _WatchedImage:
        """The image of *found* with the mutations *chosen*, to be used until the next call."""
        size = mutations.size_of(found, chosen)
        whole = max(size, len(found.raw))
        if whole not in self._images:
            self._images[whole] = _sized(whole)
        image = self._images[whole]
        image.stores = None
        image.mem[: len(found.raw)] = found.raw
        mutations.apply(found, chosen, image.mem)
        for mutation in chosen:
            if mutation.punch is not None:
                self._punch(image, *mutation.punch)
        if size == len(found.raw):
            return image
        del self._images[whole]
        if size < whole:
            # Cut off: whoever reads behind the end finds nothing there.
            cut = _sized(size)
            cut.mem[:] = image.mem[:size]
            image.close()
            return cut
        return image

    @staticmethod
    def _punch(image: Image, start: int, end: int) -> None:
        """Make blocks of zeroes holes of the image file."""
        for place in range(start, end, BLOCK_SIZE):
            if not any(image.mem[place : place + BLOCK_SIZE]):
                image.discard(place, BLOCK_SIZE)

    def run(self, case: Case) -> None:
        """Try one image. Raises Failure."""
        found, chosen, dice = case.build()
        self.complaints.found.clear()
        # Again and again: an exception out of a callback of the garbage collector is swallowed.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_MAX, CPU_SECONDS_MAX)
        try:
            _Trial(self.image(found, chosen), dice, self.tally).run()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            before, self._peak = self._peak, _peak_bytes()
        if self.complaints.found:
            raise Failure(f"the log says: {self.complaints.found[0]}")
        growth = self._peak - before
        if growth > GROWTH_MAX:
            raise Failure(f"it took {growth >> 20} MiB of memory")
        self.tally["images"] += 1
        self.tally["mutations"] += len(chosen)

    def fails(self, case: Case) -> str | None:
        """What is wrong with *case*, or None."""
        try:
            self.run(case)
        except Failure as failure:
            return str(failure)
        return None

    def reduce(self, case: Case) -> Case:
        """*case*, which fails, with the fewest mutations that fail too."""
        only = list(case.only if case.only is not None else range(len(case.build()[1])))
        for number in tuple(only):
            fewer = [n for n in only if n != number]
            if fewer and self.fails(Case(case.seed, tuple(fewer))):
                only = fewer
        return Case(case.seed, tuple(only))


def limit_time() -> None:
    """Make this process raise Failure in an image that takes too long."""

    def on_time(number: int, frame: FrameType | None) -> None:
        raise Failure(f"it took more than {CPU_SECONDS_MAX} s of processor time")

    signal.signal(signal.SIGPROF, on_time)


def _peak_bytes() -> int:
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _sized(size: int) -> _WatchedImage:
    fd = os.memfd_create("daxfs-hostile", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return _WatchedImage(ANONYMOUS_PATH, fd, size, writable=True)


class _Trial:
    """What is done with one image."""

    def __init__(self, image: _WatchedImage, dice: Random, tally: "Counter[str]") -> None:
        self.image = image
        self.dice = dice
        self.tally = tally

    def run(self) -> None:
        dice = self.dice
        self._info()
        if dice.random() < 0.5:
            if dice.random() < 0.25:
                self._use_read_only()
            self._use(strict=False)
        if self._repair():
            self._info()
            if self._use(strict=True) and dice.random() < 0.25:
                code, said = self._fsck(repair=False)
                if code != FsckExit.CLEAN:
                    raise Failure(f"after use of a repaired image: {said}")

    # --- mounts ----------------------------------------------------------------------------------

    def _use(self, *, strict: bool) -> bool:
        """Mount it for writing and use it; whether it was unmounted cleanly."""
        image, dice = self.image, self.dice
        fs = self._mount(image, strict=strict)
        if fs is None:
            return False
        user = User(fs, remount_ro=dice.random() < 0.2, strict=strict)
        user.walk()
        user.change(dice, dice.choice([0, 5, 10] if strict else [0, 5, 10, 25]))
        is_ended = dice.random() < 0.8
        if is_ended:
            user.attempt("unmount", fs.unmount)
        elif strict:
            user.attempt("sync", fs.sync)
        state = fs.persist.load_u64(STATE_OFFSET)
        if user.damage_seen and state != STATE_ERROR:
            raise Failure(f"damage was met, but the state is {state:#x}")
        self.tally["operations"] += user.operations
        self.tally["met_damage"] += user.damage_seen
        fs.persist.close()
        return is_ended

    def _use_read_only(self) -> None:
        """Mount it from a descriptor that cannot write; nothing may change."""
        before = bytes(self.image.mem)
        fd = os.dup(self.image.fd)
        image = _WatchedImage(ANONYMOUS_PATH, fd, self.image.size, writable=False)
        fs = self._mount(image, strict=False, read_only=True)
        if fs is not None:
            user = User(fs)
            user.walk()
            user.change(self.dice, 5)
            user.attempt("unmount", fs.unmount)
            fs.persist.close()
        if bytes(self.image.mem) != before:
            raise Failure("a read-only mount has changed the image")

    def _mount(
        self, image: _WatchedImage, *, strict: bool, read_only: bool = False
    ) -> FileSystem | None:
        """A mount; None if the image is refused."""
        persist = Persist(image, "memory")
        self._watch(image, persist)
        try:
            fs = FileSystem.mount(image, persist, read_only=read_only, enable_acl=True)
        except CorruptionError as error:
            if strict:
                raise Failure(f"a repaired image is refused: {error!r}") from error
            self._refused(error)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EINVAL):
                raise Failure(f"mount: {error!r}") from error
            self._refused(error)
        except Failure:
            raise
        except Exception as error:
            raise Failure(f"mount: {error!r}") from error
        else:
            self.tally["mounts"] += 1
            return fs
        persist.close()
        return None

    def _refused(self, error: OSError) -> None:
        self.tally["refused"] += 1
        if not error.strerror or "\n" in error.strerror:
            raise Failure(f"it is refused without one clear line: {error!r}")

    def _watch(self, image: _WatchedImage, persist: Persist) -> None:
        """See all stores of a mount."""
        try:
            raw = image.pread(layout.SUPER_OFFSET, layout.SUPER_SIZE)
            stores = Stores(Superblock.decode(raw, image.size // BLOCK_SIZE))
        except CorruptionError:
            return  # it will be refused
        persist.observer = stores
        image.stores = stores

    # --- fsck and info ---------------------------------------------------------------------------

    def _info(self) -> None:
        try:
            json.dumps(read_image(self.image).as_dict())
        except CorruptionError:
            self.tally["no_super_block"] += 1
        except Exception as error:
            raise Failure(f"info: {error!r}") from error

    def _repair(self) -> bool:
        """fsck -n for every fourth image, -y, -n; whether the image is sound now."""
        found: FsckExit | None = None
        said: list[str] = []
        if self.dice.random() < 0.25:
            look = self.dice.random() < 0.4
            before = bytes(self.image.mem) if look else b""
            found, said = self._fsck(repair=False)
            if look and bytes(self.image.mem) != before:
                raise Failure("fsck -n has changed the image")
        repaired, mended = self._fsck(repair=True)
        if repaired & FsckExit.OPERATIONAL:
            self.tally["not_repaired"] += 1
            return False
        if found is not None and bool(found) != bool(repaired):
            raise Failure(f"fsck -n: {found!r} {said}; fsck -y: {repaired!r} {mended}")
        if repaired & FsckExit.UNCORRECTED:
            self.tally["not_repaired"] += 1
            return False
        left, rest = self._fsck(repair=False)
        if left != FsckExit.CLEAN:
            raise Failure(f"behind fsck -y ({mended}): {rest}")
        self.tally["repaired"] += bool(repaired)
        return True

    def _fsck(self, *, repair: bool) -> tuple[FsckExit, list[str]]:
        said: list[str] = []
        self.image.stores = None
        try:
            return check_image(self.image, repair=repair, say=said.append), said[-5:]
        except CommandError as error:
            return FsckExit(error.code), [str(error)]
        except Failure:
            raise
        except Exception as error:
            raise Failure(f"fsck {'-y' if repair else '-n'}: {error!r}") from error
