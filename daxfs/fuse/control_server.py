"""The daemon's side of the control socket: see ``control`` for the protocol.

Invariants: a request runs in one step of the event loop, so an answer shows one moment (what it
makes the kernel drop is gone before the answer is sent); whatever a peer sends, it gets an answer
or is dropped, and no other peer notices.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import Any, Final, get_args

import trio

from daxfs.errors import CommandError, FsError
from daxfs.fs.super import FileSystem
from daxfs.fuse import lowlevel
from daxfs.fuse.control import TIMEOUT_SECONDS, Answer
from daxfs.fuse.evictor import Evictor
from daxfs.fuse.options import AtimeMode, MountOptions
from daxfs.ondisk.layout import BLOCK_SIZE, STATE_CLEAN, STATE_DIRTY, STATE_ERROR, STATE_OFFSET
from daxfs.pmem.badblocks import Sectors, sectors_of
from daxfs.units import PAGE_SIZE, SECTOR_SIZE

log = logging.getLogger(__name__)

REQUEST_MAX: Final = 1 << 16
"""Bytes of a request's line."""
CONNECTIONS_MAX: Final = 32

_CREDENTIALS: Final = struct.Struct("3i")
_STATES: Final = {STATE_CLEAN: "clean", STATE_DIRTY: "dirty", STATE_ERROR: "error"}

Request = dict[str, Any]
TakeBack = Callable[[int, int, int], Awaitable[None]]
"""Takes pages of an inode, first byte and end, back from the kernel: see ``Pages.take_back``."""


class Answers:
    """The answers of one mount. All sizes in bytes, unless a name says otherwise."""

    def __init__(
        self,
        fs: FileSystem,
        evictor: Evictor,
        options: MountOptions,
        mountpoint: str,
        take_back: TakeBack,
    ) -> None:
        self._fs = fs
        self._evictor = evictor
        self._options = options
        self._mountpoint = mountpoint
        self._take_back = take_back
        self._stale: list[tuple[int, int, int]] = []
        """Ranges (inode, first byte, end) that the kernel must not show from its pages."""
        self._start = time.monotonic()

    def answer(self, request: Request) -> Answer:
        """The answer to *request*; one with "error" if there is none."""
        operations: dict[Any, Callable[[Request], Answer]] = {
            "stat": self.stat,
            "info": self.info,
            "map": self.map,
            "trace": self.trace,
            "remount": self.remount,
            "badblocks": self.badblocks,
        }
        op = request.get("op")
        operation = operations.get(op) if isinstance(op, str) else None
        if operation is None:
            return {"error": f"unknown op {op!r}"}
        try:
            return operation(request)
        except (OSError, ValueError) as error:
            return {"error": getattr(error, "strerror", None) or str(error)}
        except Exception as error:
            log.exception("the request %r failed unexpectedly", op)
            return {"error": f"unexpected {type(error).__name__}: {error}"}

    def stat(self, request: Request) -> Answer:
        """Figures since the mount, and the state now."""
        fs, evictor = self._fs, self._evictor
        entries = dict.fromkeys(("pte_zero", "pte_mapped", "pmd_zero", "pmd_mapped"), 0)
        memory_bytes = 0
        inodes = fs.cached_inodes()
        for inode in inodes:
            memory_bytes += inode.mapping.memory_bytes()
            for kind, count in inode.mapping.count_by_kind().items():
                entries[kind] += count
        return {
            "mountpoint": self._mountpoint,
            "image": fs.image.path,
            "pid": os.getpid(),
            "uptime_seconds": time.monotonic() - self._start,
            "dax": self._options.dax,
            "read_only": fs.read_only,
            "range_eviction": lowlevel.takes_ranges(),
            "block_size": BLOCK_SIZE,
            "blocks": {"total": fs.blocks.total, "used": fs.blocks.used, "free": fs.blocks.free},
            "inodes": {
                "total": fs.inode_numbers.total,
                "used": fs.inode_numbers.total - fs.inode_numbers.free,
                "free": fs.inode_numbers.free,
                "in_memory": len(inodes),
            },
            "entries": {**entries, "memory_bytes": memory_bytes},
            "holes": {
                "served_bytes": fs.trace.counters.hole_bytes_served,
                "evicted_bytes": evictor.evicted_bytes,
                "held_bytes": evictor.held_bytes,
                "budget_bytes": self._options.hole_cache,
            },
            "counters": fs.trace.counters.as_dict(),
            "latency_ns": {op: fs.trace.percentiles(op) for op in sorted(fs.trace.ops())},
        }

    def info(self, request: Request) -> Answer:
        """What is mounted. "fd" is the image's descriptor in process "pid", for /proc/PID/fd."""
        fs = self._fs
        sb = fs.sb
        state = int.from_bytes(fs.image.pread_around(STATE_OFFSET, 8)[0], "little")
        return {
            "mountpoint": self._mountpoint,
            "path": fs.image.path,
            "pid": os.getpid(),
            "fd": fs.image.fd,
            "uuid": str(sb.uuid),
            "label": sb.label,
            "state": _STATES.get(state, "unknown"),
            "size_bytes": fs.image.size,
            "allocated_bytes": fs.image.allocated_bytes(),
            "block_count": sb.block_count,
            "blocks_used": sb.block_count - fs.blocks.free,
            "blocks_free": fs.blocks.free,
            "inodes_used": fs.inode_numbers.total - fs.inode_numbers.free,
            "inodes_free": fs.inode_numbers.free,
            "persist": fs.persist.domain,
            "options": asdict(self._options),
        }

    def map(self, request: Request) -> Answer:
        """Extents and index entries of "ino"; ranges of the file and places in the image."""
        ino = request.get("ino")
        if not isinstance(ino, int) or isinstance(ino, bool):
            raise ValueError('map needs "ino", a number')
        inode = self._fs.iget(ino)
        return {
            "ino": inode.ino,
            "size": inode.size,
            "blocks": inode.blocks,
            "is_dax": inode.is_dax,
            "extents": [
                {
                    "offset": extent.pgoff * PAGE_SIZE,
                    "length": extent.count * PAGE_SIZE,
                    "image_offset": extent.block * BLOCK_SIZE,
                    "unwritten": extent.unwritten,
                }
                for extent in self._fs.extents(inode)
            ],
            "entries": [
                {
                    "offset": entry.pgoff * PAGE_SIZE,
                    "length": entry.count * PAGE_SIZE,
                    "kind": ("pmd" if entry.pmd else "pte")
                    + ("_zero" if entry.zero else "_mapped"),
                    "image_offset": None if entry.zero else entry.pfn * BLOCK_SIZE,
                    "dirty": entry.dirty,
                }
                for entry in inode.mapping.ranges()
            ],
        }

    def trace(self, request: Request) -> Answer:
        """Turn the events on or off, or take those that were kept, as the kernel writes them."""
        trace = self._fs.trace
        action = request.get("action")
        if action == "enable":
            trace.enable()
        elif action == "disable":
            trace.disable()
        elif action == "read":
            events = [
                {"ts_ns": event["ts_ns"], "text": trace.format_event(event)}
                for event in trace.read_events()
            ]
            return {"events": events, "lost": trace.events_lost, "enabled": trace.enabled}
        else:
            raise ValueError('trace needs "action": enable, disable or read')
        return {"enabled": trace.enabled}

    def remount(self, request: Request) -> Answer:
        """Change nothing from now on, or change again: the kernel's side of it is the caller's.

        With "atime" and "diratime" it also changes when access times are set.
        """
        read_only, atime = request.get("read_only"), request.get("atime")
        if not isinstance(read_only, bool):
            raise ValueError('remount needs "read_only", true or false')
        if atime is not None and atime not in get_args(AtimeMode):
            raise ValueError(f'"atime" can be {", ".join(get_args(AtimeMode))}')
        self._fs.remount(read_only=read_only)
        if atime is not None:
            diratime = request.get("diratime") is not False
            self._fs.options = self._fs.options._replace(atime=atime, diratime=diratime)
        return {"read_only": self._fs.read_only}

    def badblocks(self, request: Request) -> Answer:
        """Make sectors bad or good: those of the image, or those that bytes of a file lie in."""
        persist = self._fs.persist
        change = {"add": persist.add_badblocks, "clear": persist.clear_badblocks}.get(
            request.get("action", "")
        )
        if change is None:
            raise ValueError('badblocks needs "action": add or clear')
        if not self._fs.image.writable:
            raise FsError(errno.EROFS, "the image was opened for reading only")
        runs = self._sectors(request)
        for run in runs:
            change(run)
            self._stale += self._files_on(run)
        return {"sectors": [[run.first, run.count] for run in runs]}

    def _sectors(self, request: Request) -> list[Sectors]:
        if "ino" not in request:
            return [Sectors(_number(request, "first"), _number(request, "count"))]
        inode = self._fs.iget(_number(request, "ino"))
        start = _number(request, "offset")
        end = start + _number(request, "length")
        found = []
        for extent in self._fs.extents(inode):
            base, place = extent.pgoff * PAGE_SIZE, extent.block * BLOCK_SIZE
            low, high = max(start, base), min(end, base + extent.count * PAGE_SIZE)
            if low < high:
                found.append(sectors_of(place + low - base, high - low))
        if not found:
            raise ValueError("no block of the image holds these bytes")
        return found

    def _files_on(self, run: Sectors) -> list[tuple[int, int, int]]:
        """The ranges of files known to the kernel that lie on the sectors of *run*."""
        first, end = run.first * SECTOR_SIZE // BLOCK_SIZE, -(-run.end * SECTOR_SIZE // BLOCK_SIZE)
        found = []
        for inode in self._fs.cached_inodes():
            extents = []
            if inode.is_reg:
                with contextlib.suppress(OSError):
                    extents = self._fs.extents(inode)
            for extent in extents:
                low, high = max(first, extent.block), min(end, extent.block + extent.count)
                if low < high:
                    base = extent.pgoff - extent.block
                    found.append((inode.ino, (base + low) * PAGE_SIZE, (base + high) * PAGE_SIZE))
        return found

    async def settle(self) -> None:
        """Before an answer is sent: have the kernel drop what it must not show any more."""
        stale, self._stale = self._stale, []
        for run in stale:
            await self._take_back(*run)


def _number(request: Request, name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f'"{name}" must be a number that is not negative')
    return value


def answer_line(line: bytes, answers: Callable[[Request], Answer]) -> bytes:
    """The answer, a line, to the request *line*, whatever it is."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        answer: Answer = {"error": "the request is not JSON"}
    else:
        if isinstance(request, dict):
            answer = answers(request)
        else:
            answer = {"error": "the request is not an object"}
    return json.dumps(answer).encode() + b"\n"


def runtime_directory() -> str:
    """Where the sockets of this user are: a directory of this user's alone, made if it is missing.

    /run/daxfs for root, else $XDG_RUNTIME_DIR/daxfs or /tmp/daxfs-UID. CommandError if what is
    there belongs to somebody else.
    """
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0:
        path = "/run/daxfs"
    elif os.path.isabs(runtime) and os.path.isdir(runtime):
        path = os.path.join(runtime, "daxfs")
    else:
        path = f"/tmp/daxfs-{uid}"  # noqa: S108  (its owner is checked below)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid:
            raise CommandError(f"{path}: is not a directory of this user: remove it")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.chmod(path, 0o700)
    except OSError as error:
        raise CommandError(
            f"{path}: the control socket cannot be made: {error.strerror}"
        ) from error
    return path


class Server:
    """The socket of one mount; a context manager that removes it at the end."""

    def __init__(self) -> None:
        directory = runtime_directory()
        self.path = os.path.join(directory, f"{os.getpid()}.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _alone_in(directory):
                _remove_dead(directory)
                self._socket.bind(self.path)
                os.chmod(self.path, 0o600)
                self._socket.listen(CONNECTIONS_MAX)
        except OSError as error:
            self._socket.close()
            raise CommandError(f"{self.path}: {error.strerror or error}") from error
        self._limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    async def serve(self, answers: Answers) -> None:
        """Answer until cancelled."""
        self._socket.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))

        async def connected(stream: trio.SocketStream) -> None:
            async with self._limit:
                await _converse(stream, answers)

        await trio.serve_listeners(connected, [listener])


def _peer_uid(stream: trio.SocketStream) -> int:
    """The user that a peer had when it connected (SO_PEERCRED of unix(7))."""
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """While no other daemon makes a socket there: one that does not listen yet looks dead."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_dead(directory: str) -> None:
    """Remove the sockets in *directory* that killed daemons have left behind."""
    for entry in os.scandir(directory):
        if not entry.name.endswith(".sock"):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(entry.path)
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
            except OSError:
                continue  # busy, or gone in the meantime


async def _converse(stream: trio.SocketStream, answers: Answers) -> None:
    """Answer the requests of one peer. A peer that goes away is no error; no other notices one."""
    try:
        await _answer_all(stream, answers)
    except (trio.BrokenResourceError, trio.TooSlowError, OSError):
        pass
    except Exception:
        log.exception("a request to the control socket")


async def _answer_all(stream: trio.SocketStream, answers: Answers) -> None:
    """Answer the requests of one peer until it has no more."""
    async with stream:
        allowed = _peer_uid(stream) in (0, os.geteuid())
        buffer = bytearray()
        while True:
            with trio.fail_after(TIMEOUT_SECONDS):
                data = await stream.receive_some(REQUEST_MAX)
                if not data:
                    return
                if not allowed:
                    await stream.send_all(b'{"error": "permission denied"}\n')
                    return
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    answer = answer_line(line, answers.answer)
                    await answers.settle()
                    await stream.send_all(answer)
                if len(buffer) > REQUEST_MAX:
                    await stream.send_all(b'{"error": "the request is too long"}\n')
                    return
