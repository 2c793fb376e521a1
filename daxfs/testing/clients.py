"""Programs that load a mount and note, outside of it, what they started and what returned.

Each client runs in a process of its own. The notes are lines of JSON in a file on another
filesystem, written by one write(2) each: ``["begin", NAME, ARGUMENTS...]``, then ``["done"]``,
``["error", errno]``, or nothing where the client died. ``replay`` turns them into what may be
there after a crash. What that is depends on the view:

    through    the image of a mount that writes through: what has returned is there; stores through
               a mapping are there after msync or fsync, before that each byte is old or new
    cached     the same with the kernel's write-back cache (dax=never): as stores, so also writes
    seen       what programs see while the mount lives: all that has returned

An operation on names or sizes that was cut off is there wholly or not; of data, each byte is the
old or the new one. How many operations were done before the end is up to the machine; which ones,
up to the seed.
"""

import copy
import ctypes
import errno
import json
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from daxfs.testing.filemodel import FileModel, pattern
from daxfs.testing.treemodel import ROOT, Found, Node, Tree, contents, read_tree, xattr_value

View = Literal["through", "cached", "seen"]
Operation = list[Any]

PAGE: Final = 4096
CHUNK: Final = 2 << 20
TOLD: Final = {errno.EIO, errno.EINTR}
"""What a program gets beside one that was killed (see ``Load._expect_running`` of ``kill``)."""
GONE: Final = {errno.ENOTCONN, errno.ECONNABORTED, *TOLD}
"""What a program gets whose mount has no daemon any more."""

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_RENAME_EXCHANGE = 2
_MS_SYNC = 4
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def _call(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Client(Protocol):
    """One program and the model of what it works on."""

    name: str

    def prepare(self) -> None:
        """Open what the operations need, in the client's process."""

    def next(self, rng: random.Random, number: int) -> Operation:
        """The operation *number*, made to fit the model."""

    def do(self, operation: Operation) -> None:
        """Carry *operation* out. OSError."""

    def apply(self, operation: Operation, view: View) -> None:
        """*operation* has returned."""

    def cut(self, operation: Operation) -> bool:
        """*operation* was cut off. True: it is there wholly or not, and nothing was done here."""

    def verify(self) -> str | None:
        """What is wrong with what is there now; takes over what is there."""


def run(client: Client, log: int, rng: random.Random) -> None:
    """Do operations until the mount is gone; *log* is the descriptor of the notes.

    OSError: an operation failed otherwise, and none of them may.
    """

    def note(*words: object) -> None:
        os.write(log, json.dumps(words).encode() + b"\n")

    number = rng.randrange(1 << 30)
    try:
        client.prepare()
        while True:
            number += 1
            operation = client.next(rng, number)
            note("begin", *operation)
            try:
                client.do(operation)
            except OSError as error:
                note("error", error.errno)
                raise
            note("done")
            client.apply(operation, "seen")
    except OSError as error:
        if error.errno not in GONE:
            raise


def replay(client: Client, notes: str, view: View) -> tuple[list[Client], int]:
    """What may be there after *notes*, as clients of which one must find itself right; and the
    number of operations that have returned.
    """
    begun: Operation | None = None
    count = 0
    for line in notes.splitlines():
        word, *rest = json.loads(line)
        if word == "begin":
            begun = rest
        elif word == "done" and begun is not None:
            client.apply(begun, view)
            count += 1
            begun = None
    if begun is None:
        return [client], count
    before = copy.deepcopy(client)
    if client.cut(begun):
        client.apply(begun, view)
        return [before, client], count
    return [client], count


class Writer:
    """Reads, writes and maps one file, or the *limit* bytes of it that begin at *base*.

    Has it the file to itself, it also changes its size.
    """

    def __init__(self, path: Path, limit: int, *, base: int | None = None) -> None:
        self.name = path.name if base is None else f"{path.name} from {base}"
        self.path = path
        self.limit = limit
        self.is_alone = base is None
        self.base = base or 0
        self.model = FileModel(0 if base is None else limit)
        self._fd = self._direct = -1
        self._address = 0

    def prepare(self) -> None:
        """See Client."""
        self._fd = os.open(self.path, os.O_RDWR)
        self._direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, self.limit, protection, mmap.MAP_SHARED, self._fd, self.base)
        if address in (None, ctypes.c_void_p(-1).value):
            _call(-1)
        self._address = int(address)

    def next(self, rng: random.Random, number: int) -> Operation:
        """See Client."""
        size = self.model.size
        offset = rng.randrange(self.limit)
        if rng.random() < 0.4:
            offset -= offset % PAGE
        length = rng.choice((rng.randint(1, 99), rng.randint(1, PAGE), rng.randint(1, 12 * PAGE)))
        if rng.random() < 0.04:
            length = rng.randint(1, CHUNK)
        length = min(length, self.limit - offset)
        kinds = {"write": 10, "direct": 3, "store": 14, "read": 6, "msync": 3, "fsync": 1}
        kinds |= {"punch": 4, "zero": 2, "allocate": 2}
        if self.is_alone:
            kinds["truncate"] = 3
        [kind] = rng.choices(list(kinds), list(kinds.values()))
        if kind == "direct":
            offset -= offset % PAGE
            return [kind, offset, max(PAGE, length - length % PAGE), number]
        if kind in ("store", "read", "msync"):
            if not size:
                return ["truncate", self.limit]
            offset %= size
            if kind == "msync":
                offset -= offset % PAGE
            return [kind, offset, min(length, size - offset), number]
        if kind in ("punch", "zero", "allocate"):
            keep = not self.is_alone or rng.random() < 0.5
            return [kind, offset, length, keep]
        if kind == "truncate":
            return [kind, rng.choice((0, offset, offset, self.limit))]
        return [kind] if kind == "fsync" else [kind, offset, length, number]

    def do(self, operation: Operation) -> None:
        """See Client."""
        kind, *rest = operation
        if kind == "fsync":
            os.fsync(self._fd)
            return
        offset = self.base + rest[0]
        if kind == "truncate":
            os.ftruncate(self._fd, offset)
            return
        length = rest[1]
        if kind == "write":
            self._written(os.pwrite(self._fd, pattern(rest[2], length).data, offset), length)
        elif kind == "direct":
            with mmap.mmap(-1, length) as buffer:
                buffer[:] = pattern(rest[2], length).tobytes()
                self._written(os.pwrite(self._direct, buffer, offset), length)
        elif kind == "store":
            ctypes.memmove(self._address + rest[0], pattern(rest[2], length).tobytes(), length)
        elif kind == "read":
            ctypes.string_at(self._address + rest[0], length)
        elif kind == "msync":
            _call(_libc.msync(self._address + rest[0], length, _MS_SYNC))
        else:
            mode = {"punch": _PUNCH_HOLE | _KEEP_SIZE, "zero": _ZERO_RANGE, "allocate": 0}[kind]
            mode |= _KEEP_SIZE if rest[2] else 0
            _call(_libc.fallocate(self._fd, mode, offset, length))

    @staticmethod
    def _written(count: int, length: int) -> None:
        if count != length:
            raise OSError(errno.EIO, f"{count} of {length} bytes were written")

    def apply(self, operation: Operation, view: View) -> None:
        """See Client."""
        kind, *rest = operation
        model = self.model
        if kind in ("write", "direct", "store"):
            values = pattern(rest[2], rest[1])
            waits = view == "cached" if kind == "write" else kind == "store" and view != "seen"
            (model.pend if waits else model.put)(rest[0], values)
        elif kind == "msync":
            model.settle(rest[0], rest[0] + rest[1])
        elif kind == "fsync":
            model.settle()
        elif kind == "truncate":
            model.resize(rest[0])
        elif kind in ("punch", "zero", "allocate"):
            end = rest[0] + rest[1]
            if kind != "allocate":
                model.zero(rest[0], end)
            if kind != "punch" and not rest[2]:
                model.put(end, pattern(0, 0))

    def cut(self, operation: Operation) -> bool:
        """See Client."""
        kind, *rest = operation
        model = self.model
        if kind in ("write", "direct", "store"):
            model.pend(rest[0], pattern(rest[2], rest[1]))
        elif kind in ("punch", "zero", "allocate"):
            end = rest[0] + rest[1]
            if kind == "punch" or rest[2]:
                end = min(end, model.size)
            start = rest[0] if kind != "allocate" else max(rest[0], model.size)
            if start < end:
                model.pend(start, 0 * pattern(0, end - start))
        return bool(kind == "truncate")

    def verify(self) -> str | None:
        """See Client."""
        found = contents(self.path)
        if not self.is_alone:
            found = found[self.base : self.base + self.limit]
        wrong = self.model.check(found)
        if wrong is None:
            self.model.adopt(found)
        return wrong


class Storm:
    """Makes, renames and removes names in the folder *path*; at most *limit* of them."""

    def __init__(self, path: Path, limit: int, *, depth: int) -> None:
        self.name = path.name
        self.path = path
        self.limit = limit
        self.depth = depth
        self.tree = Tree()
        self._orphans: list[int] = []

    def prepare(self) -> None:
        """See Client."""
        os.chdir(self.path)

    def next(self, rng: random.Random, number: int) -> Operation:
        """See Client."""
        tree = self.tree
        files, links = tree.paths(stat.S_IFREG), tree.paths(stat.S_IFLNK, stat.S_IFIFO)
        folders = tree.paths(stat.S_IFDIR)
        new = self._new(rng, folders, number)
        making = 10 if len(tree.nodes) < self.limit else 1
        kinds = {"create": 2 * making, "mkdir": making if self.depth else 0}
        kinds |= {"symlink": making // 2, "fifo": making // 4}
        if files:
            kinds |= {"link": making // 2, "write": 12, "truncate": 3, "fsync": 3, "orphan": 3}
        if files or links:
            kinds |= {"unlink": 8, "rename": 12}
        if folders:
            kinds |= {"rmdir": 4, "rename_folder": 3}
        kinds |= {"setxattr": 5, "removexattr": 3, "chmod": 3}
        [kind] = rng.choices(list(kinds), list(kinds.values()))
        some = rng.choice([*files, *folders, ROOT])
        file = rng.choice(files or [ROOT])
        name = rng.choice([*files, *links] or [ROOT])
        match kind:
            case "create" | "mkdir" | "fifo":
                return [kind, new]
            case "symlink":
                return [kind, new, "t" * rng.choice((1, 30, 200, 3000))]
            case "link":
                return [kind, file, new]
            case "write":
                size = rng.choice((1, 100, PAGE, 3 * PAGE))
                return [kind, file, rng.randrange(3 * PAGE), size, number]
            case "truncate":
                return [kind, file, rng.randrange(4 * PAGE)]
            case "fsync":
                return [kind, file]
            case "orphan":
                shared = sum(node is tree.nodes[file] for node in tree.nodes.values()) > 1
                return ["fsync", file] if shared else [kind, file, number]
            case "unlink":
                return [kind, name]
            case "rename":
                others = [path for path in (*files, *links) if path != name]
                if others and rng.random() < 0.5:
                    other = rng.choice(others)
                    same = tree.nodes[other] is tree.nodes[name]
                    return [kind, name, other, _RENAME_EXCHANGE * (same or rng.random() < 0.5)]
                return [kind, name, new, 0]
            case "rename_folder":
                folder = rng.choice(folders)
                if (new + "/").startswith(folder + "/"):
                    return ["chmod", folder, rng.choice((0o700, 0o755))]
                return ["rename", folder, new, 0]
            case "rmdir":
                empty = [folder for folder in folders if tree.is_empty(folder)]
                return [kind, rng.choice(empty)] if empty else ["mkdir", new]
            case "setxattr":
                size = rng.choice((1, 100, 3000, 20000))
                return [kind, some, f"user.{rng.randrange(4)}", size, number]
            case "removexattr":
                names = sorted(tree.nodes[some].xattrs)
                return [kind, some, rng.choice(names)] if names else ["chmod", some, 0o755]
        return ["chmod", some, rng.choice((0o700, 0o711, 0o755))]

    def _new(self, rng: random.Random, folders: list[str], number: int) -> str:
        name = f"{number:x}" + "n" * rng.choice((0, 0, 10, 200))
        shallow = [folder for folder in folders if folder.count("/") + 1 < self.depth]
        parent = rng.choice([*shallow, ROOT])
        return name if parent == ROOT else f"{parent}/{name}"

    def do(self, operation: Operation) -> None:
        """See Client."""
        kind, path, *rest = operation
        simple: dict[str, Callable[..., object]] = {
            "mkdir": lambda: os.mkdir(path, 0o755),
            "fifo": lambda: os.mkfifo(path, 0o644),
            "symlink": lambda: os.symlink(rest[0], path),
            "link": lambda: os.link(path, rest[0]),
            "unlink": lambda: os.unlink(path),
            "rmdir": lambda: os.rmdir(path),
            "truncate": lambda: os.truncate(path, rest[0]),
            "chmod": lambda: os.chmod(path, rest[0]),
            "setxattr": lambda: os.setxattr(path, rest[0], xattr_value(rest[2], rest[1])),
            "removexattr": lambda: os.removexattr(path, rest[0]),
        }
        if kind in simple:
            simple[kind]()
        elif kind == "rename":
            old, new = os.fsencode(path), os.fsencode(rest[0])
            _call(_libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, rest[1]))
        else:
            self._with_file(kind, path, rest)

    def _with_file(self, kind: str, path: str, rest: list[Any]) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if kind == "create" else 0)
        fd = os.open(path, flags, 0o644)
        if kind == "orphan":
            self._orphans.append(fd)
            if len(self._orphans) > 4:
                os.close(self._orphans.pop(0))
            os.unlink(path)
            os.pwrite(fd, pattern(rest[0], 100000).data, 0)
            return
        try:
            if kind == "write":
                Writer._written(os.pwrite(fd, pattern(rest[2], rest[1]).data, rest[0]), rest[1])
            elif kind == "fsync":
                os.fsync(fd)
        finally:
            os.close(fd)

    def apply(self, operation: Operation, view: View) -> None:
        """See Client."""
        kind, path, *rest = operation
        nodes = self.tree.nodes
        match kind:
            case "create":
                nodes[path] = Node(stat.S_IFREG, 0o644)
            case "mkdir":
                nodes[path] = Node(stat.S_IFDIR, 0o755)
            case "fifo":
                nodes[path] = Node(stat.S_IFIFO, 0o644)
            case "symlink":
                nodes[path] = Node(stat.S_IFLNK, 0o777, rest[0])
            case "link":
                nodes[rest[0]] = nodes[path]
            case "unlink" | "rmdir" | "orphan":
                del nodes[path]
            case "rename":
                self.tree.rename(path, rest[0], exchange=bool(rest[1]))
            case "setxattr":
                nodes[path].xattrs[rest[0]] = xattr_value(rest[2], rest[1])
            case "removexattr":
                del nodes[path].xattrs[rest[0]]
            case "chmod":
                nodes[path].mode = rest[0]
            case "truncate":
                nodes[path].file.resize(rest[0])
            case "fsync":
                nodes[path].file.settle()
            case "write":
                file = nodes[path].file
                store = file.pend if view == "cached" else file.put
                store(rest[0], pattern(rest[2], rest[1]))

    def cut(self, operation: Operation) -> bool:
        """See Client."""
        kind, path, *rest = operation
        if kind == "write":
            self.tree.nodes[path].file.pend(rest[0], pattern(rest[2], rest[1]))
        return kind not in ("write", "fsync")

    def verify(self) -> str | None:
        """See Client."""
        found: dict[str, Found] = read_tree(self.path)
        wrong = self.tree.check(found)
        if wrong is None:
            self.tree.adopt(found)
        return wrong
