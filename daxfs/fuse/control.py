"""The control socket: one JSON request and one JSON answer a line, for ``daxfs stat`` and others.

Kernel counterpart: the files of /sys/fs/ext4 and /sys/kernel/tracing.

Each mount has a unix socket in the runtime directory (``runtime_directory``), mode 0600; a peer
must be root or the user that the daemon runs as. The mount's root tells where it is, in the
attribute ``user.daxfs.control``. Requests are objects with "op"; an answer that failed has "error":

    {"op": "stat"}              figures of the mount (see Answers.stat)
    {"op": "info"}              the image and the options
    {"op": "map", "ino": N}     extents and index entries of inode N
    {"op": "trace", "action": "enable" | "disable" | "read"}    the fs_dax events

Invariant: a request runs in one step of the event loop, so an answer shows one moment.
"""

import contextlib
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import trio

from daxfs.errors import CommandError
from daxfs.fs.super import FileSystem
from daxfs.fuse import lowlevel
from daxfs.fuse.evictor import Evictor
from daxfs.fuse.mountinfo import FSTYPE, mounts_of
from daxfs.fuse.options import MountOptions
from daxfs.ondisk.layout import BLOCK_SIZE, STATE_CLEAN, STATE_DIRTY, STATE_ERROR, STATE_OFFSET
from daxfs.units import PAGE_SIZE

log = logging.getLogger(__name__)

CONTROL_XATTR: Final = "user.daxfs.control"
REQUEST_MAX: Final = 1 << 16
"""Bytes of a request's line."""
CONNECTIONS_MAX: Final = 32
TIMEOUT_SECONDS: Final = 30.0
"""A peer that neither asks nor takes its answer for so long is dropped."""

_CREDENTIALS: Final = struct.Struct("3i")
_STATES: Final = {STATE_CLEAN: "clean", STATE_DIRTY: "dirty", STATE_ERROR: "error"}

Request = dict[str, Any]
Answer = dict[str, Any]


# --- what is answered ----------------------------------------------------------------------------


class Answers:
    """The answers of one mount. All sizes in bytes, unless a name says otherwise."""

    def __init__(
        self,
        fs: FileSystem,
        evictor: Evictor,
        options: MountOptions,
        image_spec: str,
        mountpoint: str,
    ) -> None:
        self._fs = fs
        self._evictor = evictor
        self._options = options
        self._image_spec = image_spec
        self._mountpoint = mountpoint
        self._start = time.monotonic()

    def answer(self, request: Request) -> Answer:
        """The answer to *request*; one with "error" if there is none."""
        operations: dict[Any, Callable[[Request], Answer]] = {
            "stat": self.stat,
            "info": self.info,
            "map": self.map,
            "trace": self.trace,
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
            "image": self._image_spec,
            "pid": os.getpid(),
            "uptime_seconds": time.monotonic() - self._start,
            "dax": self._options.dax,
            "read_only": fs.read_only,
            "range_eviction": lowlevel.missing() is None,
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
        return {
            "mountpoint": self._mountpoint,
            "path": fs.image.path,
            "pid": os.getpid(),
            "fd": fs.image.fd,
            "uuid": str(sb.uuid),
            "label": sb.label,
            "state": _STATES.get(fs.persist.load_u64(STATE_OFFSET), "unknown"),
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


# --- the daemon's side ---------------------------------------------------------------------------


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
        self.path = os.path.join(runtime_directory(), f"{os.getpid()}.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(self.path)
            os.chmod(self.path, 0o600)
            self._socket.listen(CONNECTIONS_MAX)
        except OSError as error:
            self._socket.close()
            raise CommandError(f"{self.path}: {error.strerror}") from error
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


async def _converse(stream: trio.SocketStream, answers: Answers) -> None:
    """Answer the requests of one peer. A peer that goes away is no error."""
    with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError, OSError):
        async with stream:
            raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, uid, _ = _CREDENTIALS.unpack(raw)
            if uid not in (0, os.geteuid()):
                await stream.send_all(b'{"error": "permission denied"}\n')
                return
            buffer = bytearray()
            while True:
                with trio.fail_after(TIMEOUT_SECONDS):
                    data = await stream.receive_some(REQUEST_MAX)
                    if not data:
                        return
                    buffer += data
                    while (end := buffer.find(b"\n")) >= 0:
                        line = bytes(buffer[:end])
                        del buffer[: end + 1]
                        await stream.send_all(answer_line(line, answers.answer))
                    if len(buffer) > REQUEST_MAX:
                        await stream.send_all(b'{"error": "the request is too long"}\n')
                        return


# --- the asking side -----------------------------------------------------------------------------


def locate(path: str) -> str:
    """The control socket of the mount that *path* lies on. CommandError if it is no daxfs."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    roots = [entry for entry in mounts_of(device) if entry.fstype == FSTYPE and entry.root == "/"]
    if not roots:
        raise CommandError(f"{path}: is not on a daxfs: see 'findmnt -t {FSTYPE}'")
    try:
        return os.fsdecode(os.getxattr(roots[-1].mountpoint, CONTROL_XATTR))
    except OSError as error:
        raise CommandError(f"{path}: its control socket is not known: {error.strerror}") from error


class Client:
    """Asks the daemon of one mount; a context manager."""

    def __init__(self, path: str) -> None:
        """Connect to the daemon of the mount that *path* lies on. CommandError if that fails."""
        place = locate(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(TIMEOUT_SECONDS)
        try:
            self._socket.connect(place)
        except OSError as error:
            self._socket.close()
            raise CommandError(
                f"{path}: no answer at {place}: {error.strerror}: "
                "ask as root or as the user who mounted it"
            ) from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._file.close()
        self._socket.close()

    def request(self, op: str, **values: Any) -> Answer:
        """The answer to request *op* with *values*. CommandError if the daemon has none."""
        try:
            self._socket.sendall(json.dumps({"op": op, **values}).encode() + b"\n")
            line = self._file.readline()
        except OSError as error:
            raise CommandError(f"the daemon does not answer: {error}") from error
        if not line:
            raise CommandError("the daemon does not answer: it has closed the connection")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise CommandError(str(answer["error"]))
        return answer
