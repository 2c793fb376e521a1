"""An exerciser for one file, in the manner of fsx: random operations, and a model that knows all.

`operations` makes a list of operations that depends on nothing but the seed; each is clipped to
the file as it is found, so that any part of a list can be replayed (`shrink` lives on that).
`Exerciser` carries a list out and verifies after each operation: the size, and the bytes in and
around the range that it touched, in turn by read(2), through a mapping, and by O_DIRECT. Where the
file is opened, its whole content is verified.

The mapping lives as long as the file is open: what it shows across truncate, punch and eviction is
verified too. As a program this module is one exerciser that takes lists of operations as lines of
JSON and answers with lines of JSON, see `Worker`.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)

PAGE: Final = 4096
CHUNK: Final = 2 << 20
SMALL: Final = 256 << 10
"""A file of this size keeps its operations close together."""
LARGE: Final = 5 << 20
"""A file of this size has whole chunks of 2 MiB."""

FALLOCATE_MODES: Final = {
    "allocate": 0,
    "allocate_keep": FALLOC_FL_KEEP_SIZE,
    "punch": FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    "zero": FALLOC_FL_ZERO_RANGE,
    "zero_keep": FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
}

WEIGHTS: Final = {
    "read": 10,
    "read_direct": 3,
    "write": 12,
    "write_direct": 4,
    "append": 3,
    "mapread": 10,
    "mapwrite": 12,
    "store_behind_end": 2,
    "truncate": 6,
    "allocate": 4,
    "allocate_keep": 3,
    "punch": 10,
    "zero": 4,
    "zero_keep": 3,
    "copy": 8,
    "msync": 2,
    "fsync": 2,
    "reopen": 1,
    "reread": 1,
    "seek": 4,
    "blocks": 1,
}
"""How often each operation comes."""

OF_THE_OWNER: Final = {"append", "store_behind_end", "truncate", "blocks"}
"""Operations that are about a whole file."""

HOLE, UNWRITTEN, EMPTY, DATA, ANY = range(5)
"""What a page of the file is: no block; a block without data; one of both; data; unknown."""

NODES_MAX: Final = 5
"""Blocks that the block map of a LARGE file may take."""

_NOISE: Final = random.Random(1).randbytes(2 * CHUNK)
_VIEWS: Final = ("read", "map", "direct")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MS_SYNC: Final = 4


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Operation(NamedTuple):
    """One operation; *number* picks what it writes, where it copies to, and how it is verified."""

    name: str
    offset: int = 0
    length: int = 0
    number: int = 0


REMOUNT: Final = Operation("remount")
"""Between two lists of operations that are carried out on different mounts of the image."""


def operations(
    rng: random.Random, count: int, limit: int, *, is_part: bool = False
) -> list[Operation]:
    """*count* operations on a file of at most *limit* bytes, or on such a part of one."""
    weights = {n: w for n, w in WEIGHTS.items() if not (is_part and n in OF_THE_OWNER)}
    names = rng.choices(list(weights), list(weights.values()), k=count)
    return [Operation(name, *_range(rng, limit), rng.randrange(CHUNK)) for name in names]


def _range(rng: random.Random, limit: int) -> tuple[int, int]:
    """A range within *limit* bytes, often at an edge of pages or chunks."""
    offset = rng.randrange(limit)
    kind = rng.random()
    if kind < 0.3:
        offset -= offset % PAGE
    elif kind < 0.5:
        offset = max(0, offset - offset % CHUNK + rng.choice((-PAGE, -1, 0, 1, PAGE)))
    length = rng.choice((rng.randint(1, 100), rng.randint(1, PAGE), rng.randint(1, 12 * PAGE)))
    kind = rng.random()
    if kind < 0.3:
        length += -length % PAGE
    elif kind < 0.35 and limit > CHUNK:
        length = rng.choice((CHUNK, CHUNK + PAGE, 2 * CHUNK - 1, rng.randint(1, CHUNK)))
    return offset, min(length, limit - offset)


class Mismatch(Exception):
    """The file is not what the model says; or an operation failed that must not."""


class _Mapping:
    """A shared mapping of a file that may be shorter than it."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._length = length
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self._address = _libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
        if self._address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self.memory = memoryview((ctypes.c_char * length).from_address(self._address)).cast("B")

    def sync(self, size: int) -> None:
        """msync(2) of the first *size* bytes."""
        _check(_libc.msync(self._address, size, _MS_SYNC))

    def close(self) -> None:
        self.memory.release()
        _libc.munmap(self._address, self._length)


class Exerciser:
    """One file, or a part of one, its model, and the operations on both."""

    def __init__(self, path: Path, limit: int, part: int | None = None) -> None:
        """*limit*: the most bytes that the new file *path* may have; up to LARGE.

        Or, with *part*: the file is there, all zeroes; this is about its *limit* bytes from
        *part* \\* *limit* on, and other exercisers are busy beside.
        """
        self._path = path
        self._limit = limit
        self._base = 0
        """Where in the file byte 0 of this model is."""
        self._model = bytearray(limit)
        """What the file holds; zeroes behind its end."""
        self._size = 0
        self._pages = bytearray(limit // PAGE)
        """What each page is: HOLE, UNWRITTEN, ..."""
        self._fd = self._direct = -1
        self._map: _Mapping | None = None
        self._whole_size: int | None = None
        """The size of a file that is not exercised as a whole; None: it changes."""
        if part is None:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
        else:
            self._base = part * limit
            self._size = limit
            self._whole_size = path.stat().st_size

    def run(self, todo: Sequence[Operation]) -> tuple[int, str] | None:
        """Carry *todo* out on the open file: None, or which operation went wrong, and how."""
        done = 0
        try:
            self._open()
            for operation in todo:
                self._step(operation)
                done += 1
            self._close()
        except (Mismatch, OSError) as failure:
            return done, f"{type(failure).__name__}: {failure}"
        return None

    # --- opening ---

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR)
        self._direct = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        self._map = _Mapping(self._fd, self._base, self._limit)
        self._verify(0, self._limit, "read")

    def _close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self._fd)
        os.close(self._direct)

    # --- one operation ---

    def _step(self, operation: Operation) -> None:
        name, offset, length, number = operation
        if name in FALLOCATE_MODES:
            self._fallocate(name, offset, length)
        else:
            getattr(self, f"_do_{name}")(offset, length, number)
        size = os.fstat(self._fd).st_size
        expected = self._size if self._whole_size is None else self._whole_size
        if size != expected:
            raise Mismatch(f"the size is {size}, must be {expected}")
        start = max(0, offset - PAGE)
        self._verify(start, offset + length + PAGE, _VIEWS[number % len(_VIEWS)])

    def _do_read(self, offset: int, length: int, number: int) -> None:
        self._verify(offset, offset + length, "read")

    def _do_read_direct(self, offset: int, length: int, number: int) -> None:
        self._verify(offset, offset + length, "direct")

    def _do_mapread(self, offset: int, length: int, number: int) -> None:
        self._verify(offset, offset + length, "map")

    def _do_write(self, offset: int, length: int, number: int) -> None:
        self._write(self._fd, offset, length, number)

    def _do_write_direct(self, offset: int, length: int, number: int) -> None:
        self._write(self._direct, offset, length, number)

    def _do_append(self, offset: int, length: int, number: int) -> None:
        self._write(self._fd, self._size, min(length, self._limit - self._size), number)

    def _write(self, fd: int, offset: int, length: int, number: int) -> None:
        data = _noise(length, number)
        done = os.pwrite(fd, data, self._base + offset)
        if done != length:
            raise Mismatch(f"{done} of {length} bytes were written")
        self._stored(offset, data)

    def _do_mapwrite(self, offset: int, length: int, number: int) -> None:
        assert self._map is not None
        length = min(length, self._size - offset)
        if length > 0:
            data = _noise(length, number)
            self._map.memory[offset : offset + length] = data
            self._stored(offset, data)

    def _do_store_behind_end(self, offset: int, length: int, number: int) -> None:
        """Store into the rest of the last page, and sync: a longer file must not show that.

        Without the sync it may: see the limits in README.md.
        """
        assert self._map is not None
        rest = -self._size % PAGE
        if rest:
            self._map.memory[self._size : self._size + rest] = _noise(rest, number)
            self._map.sync(self._size)
            self._set_pages(self._size, self._size + rest, DATA)

    def _do_truncate(self, offset: int, length: int, number: int) -> None:
        """A cut leaves no block behind the end, where the daemon knows that it is one.

        As long as only the kernel's write-back cache knows how long the file is, it may look like
        growth, and what was allocated behind the end stays there when a file grows.
        """
        is_known = bool(number % 2)
        if is_known:
            os.fdatasync(self._fd)
        os.ftruncate(self._fd, offset)
        if offset <= self._size:
            self._zeroed(offset, self._size)
            first = -(-offset // PAGE)
            behind = self._pages[first:]
            for state in (UNWRITTEN, EMPTY, DATA, ANY):
                behind = behind.replace(_state(state), _state(HOLE if is_known else EMPTY))
            self._pages[first:] = behind
        self._size = offset

    def _fallocate(self, name: str, offset: int, length: int) -> None:
        fallocate(self._fd, FALLOCATE_MODES[name], self._base + offset, length)
        end = offset + length
        if not name.startswith("allocate"):
            self._zeroed(offset, end)
        if name == "punch":
            self._set_whole_pages(offset, end, HOLE)
        else:
            if not name.startswith("allocate"):
                self._set_whole_pages(offset, end, UNWRITTEN)
            first, last = offset // PAGE, -(-end // PAGE)
            touched = self._pages[first:last]
            self._pages[first:last] = touched.replace(_state(HOLE), _state(UNWRITTEN)).replace(
                _state(EMPTY), _state(UNWRITTEN)
            )
        if name in ("allocate", "zero"):
            self._size = max(self._size, end)

    def _do_copy(self, offset: int, length: int, number: int) -> None:
        """Copy a range within the file; overlapping ranges are refused."""
        target = number * self._limit // CHUNK
        target -= target % PAGE if number % 3 else 0
        target += offset % PAGE if number % 4 == 1 else 0
        length = max(0, min(length, self._size - offset, self._limit - target))
        if length and target < offset + length and offset < target + length:
            try:
                self._copy(offset, target, length)
            except OSError as failure:
                if failure.errno == errno.EINVAL:
                    return
                raise
            raise Mismatch("overlapping ranges were copied")
        done = 0
        while done < length:
            count = self._copy(offset + done, target + done, length - done)
            if count == 0:
                raise Mismatch(f"{done} of {length} bytes were copied")
            done += count
        if length:
            self._copied(offset, target, length)
        elif offset >= self._size and self._copy(offset, target, 1):
            raise Mismatch("bytes behind the end were copied")
        self._verify(max(0, target - PAGE), target + length + PAGE, "map")

    def _copy(self, offset: int, target: int, length: int) -> int:
        fd, base = self._fd, self._base
        return os.copy_file_range(fd, fd, length, base + offset, base + target)

    def _do_msync(self, offset: int, length: int, number: int) -> None:
        assert self._map is not None
        if self._size:
            self._map.sync(self._size)

    def _do_fsync(self, offset: int, length: int, number: int) -> None:
        (os.fsync if number % 2 else os.fdatasync)(self._fd)

    def _do_reopen(self, offset: int, length: int, number: int) -> None:
        self._close()
        self._open()

    def _do_reread(self, offset: int, length: int, number: int) -> None:
        """Read everything again, from the filesystem instead of the page cache."""
        os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._verify(0, self._limit, "read")

    def _do_seek(self, offset: int, length: int, number: int) -> None:
        """SEEK_DATA and SEEK_HOLE know every page; before EOF there is always a hole."""
        found = bytearray(len(self._pages))
        position = 0
        while (start := self._seek(position, os.SEEK_DATA)) is not None:
            end = self._seek(start, os.SEEK_HOLE)
            if start < position or end is None or not start < end <= self._size:
                raise Mismatch(f"from {position} on, data {start} to {end}, size {self._size}")
            first, last = start // PAGE, -(-end // PAGE)
            found[first:last] = b"\1" * (last - first)
            position = end
        for page in range(-(-self._size // PAGE)):
            state = self._pages[page]
            if state != ANY and found[page] != (state == DATA):
                kind = "data" if found[page] else "a hole"
                raise Mismatch(f"lseek: page {page} is {kind}")

    def _seek(self, position: int, whence: int) -> int | None:
        """Where the next data or hole begins in this part of the file; None if there is none."""
        try:
            found = os.lseek(self._fd, self._base + position, whence) - self._base
            if whence == os.SEEK_HOLE:
                return min(found, self._size)
            return found if found < self._size else None
        except OSError as failure:
            if failure.errno == errno.ENXIO:
                return None
            raise

    def _do_blocks(self, offset: int, length: int, number: int) -> None:
        """Pages without a block take none; all others do."""
        os.fsync(self._fd)
        blocks = os.fstat(self._fd).st_blocks * 512 // PAGE
        least = self._pages.count(DATA) + self._pages.count(UNWRITTEN)
        most = least + self._pages.count(ANY) + self._pages.count(EMPTY) + NODES_MAX
        if not least <= blocks <= most:
            raise Mismatch(f"{blocks} blocks, must be {least} to {most}")

    # --- the model ---

    def _stored(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        self._model[offset:end] = data
        self._set_pages(offset, end, DATA)
        self._size = max(self._size, end)

    def _zeroed(self, start: int, end: int) -> None:
        self._model[start:end] = bytes(end - start)

    def _copied(self, offset: int, target: int, length: int) -> None:
        end = target + length
        self._model[target:end] = self._model[offset : offset + length]
        aligned = target % PAGE == offset % PAGE == 0
        first, last = target // PAGE, -(-end // PAGE)
        for page in range(first, last):
            source = self._pages[page + (offset - target) // PAGE] if aligned else ANY
            within = page * PAGE >= target and (page + 1) * PAGE <= end
            if source == DATA:
                self._pages[page] = DATA
            elif source == ANY or not within:
                self._pages[page] = ANY
            else:
                self._pages[page] = EMPTY
        self._size = max(self._size, end)

    def _set_pages(self, start: int, end: int, state: int) -> None:
        """All pages that the range touches."""
        first, last = start // PAGE, -(-end // PAGE)
        self._pages[first:last] = _state(state) * (last - first)

    def _set_whole_pages(self, start: int, end: int, state: int) -> None:
        """All pages that lie within the range."""
        first, last = -(-start // PAGE), end // PAGE
        if first < last:
            self._pages[first:last] = _state(state) * (last - first)

    def _verify(self, start: int, end: int, view: str) -> None:
        """The bytes of a range, clipped to the file, as *view* shows them."""
        assert self._map is not None
        end = min(end, self._size)
        length = max(0, end - start)
        if view == "map":
            seen = bytes(self._map.memory[start : start + length])
        else:
            fd = self._direct if view == "direct" else self._fd
            seen = os.pread(fd, length, self._base + start)
        must = self._model[start : start + length]
        if seen != must:
            where = next(
                (i for i in range(min(length, len(seen))) if seen[i] != must[i]), len(seen)
            )
            raise Mismatch(
                f"by {view} of {start} to {end}: byte {start + where} of {self._size} is"
                f" {seen[where : where + 8].hex()}, must be {must[where : where + 8].hex()}"
            )


def _state(state: int) -> bytes:
    return bytes((state,))


def _noise(length: int, number: int) -> bytes:
    number %= len(_NOISE) - length + 1
    return _NOISE[number : number + length]


# --- processes ------------------------------------------------------------------------------------


class Worker:
    """An exerciser in a process of its own."""

    def __init__(self, path: Path, limit: int, part: int | None = None) -> None:
        self.path = path
        words = [str(word) for word in (path, limit, part) if word is not None]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, todo: Sequence[Operation]) -> None:
        """Have *todo* carried out; the file is opened before and closed after."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(todo) + "\n")
        self._process.stdin.flush()

    def result(self) -> tuple[int, str] | None:
        """Wait for the end of what was started; see `Exerciser.run`.

        A process that died tells (-1, how).
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return -1, f"the process ended with {self._process.wait()}"
        answer: Any = json.loads(line)
        return None if answer is None else (answer[0], answer[1])

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _main(path: str, *numbers: str) -> None:
    exerciser = Exerciser(Path(path), *map(int, numbers))
    for line in sys.stdin:
        todo = [Operation(*words) for words in json.loads(line)]
        print(json.dumps(exerciser.run(todo)), flush=True)


# --- failures -------------------------------------------------------------------------------------


def replay(
    path: Path, limit: int, history: Sequence[Operation], remount: Callable[[], None]
) -> str | None:
    """Carry *history* out on the new file *path*; how it fails, or None. The file is removed."""
    worker = Worker(path, limit)
    try:
        todo: list[Operation] = []
        for operation in (*history, REMOUNT):
            if operation != REMOUNT:
                todo.append(operation)
                continue
            worker.start(todo)
            failure = worker.result()
            if failure is not None:
                return failure[1]
            if todo:
                todo.clear()
                remount()
        return None
    finally:
        worker.end()
        path.unlink(missing_ok=True)


def shrink(
    history: Sequence[Operation], fails: Callable[[list[Operation]], bool], seconds: float
) -> list[Operation]:
    """A short part of *history* that still fails: halves, quarters, ... are left out by turns."""
    deadline = time.monotonic() + seconds
    kept = list(history)
    piece = len(kept)
    while piece > 1:
        piece = -(-piece // 2)
        start = 0
        while start < len(kept) and time.monotonic() < deadline:
            shorter = kept[:start] + kept[start + piece :]
            if fails(shorter):
                kept = shorter
            else:
                start += piece
    return kept


if __name__ == "__main__":
    _main(*sys.argv[1:])
