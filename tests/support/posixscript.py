"""A small language for tables of system calls, and the processes that run them as several users.

A script is a text; each line is one call and what must come of it:

    USER COMMAND ARGUMENT... -> RESULT

USER is a word of USERS; RESULT is the name of an errno, or what the command prints, ``ok`` if it
prints nothing. Commands are the methods of _Commands: named after the system call, arguments in its
order, numbers of modes in octal. ``{N}`` in an argument stands for a name of N bytes. ``#`` starts
a comment. The last command of a line may be preceded by ``moves PATH,PATH``: then the result is
which of the times a(ccess), m(odification), c(hange) of these paths the command has moved, as in
``f:c d:mc``; ``old>new`` is a path that the command renames. Of a command that fails the result is
its errno, and the times only if it has moved any.

Every user is one forked process for the whole module, so a call costs some ten microseconds.
"""

import contextlib
import errno
import mmap
import os
import pickle
import re
import shlex
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from syscalls import renameat2, utimensat, wait_for_clock_tick

ANSWER_SECONDS = 60


class User(NamedTuple):
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


USERS = {
    "root": User(0, 0),
    "alice": User(60001, 60001),
    "bob": User(60002, 60002),
    "carol": User(60003, 60003, (60001,)),
}
"""carol is a member of alice's group."""

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


class _Commands:
    """What a line can do. A method returns what it prints, or None."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    # --- names ---

    def mkdir(self, path: str, mode: str = "0755") -> None:
        os.mkdir(path, int(mode, 8))

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def rename(self, old: str, new: str, flags: str = "0") -> None:
        renameat2(old, new, int(flags))

    def mkfifo(self, path: str, mode: str = "0644") -> None:
        os.mkfifo(path, int(mode, 8))

    def mknod(
        self, path: str, kind: str, mode: str = "0644", major: str = "0", minor: str = "0"
    ) -> None:
        types = {name: number for number, name in _TYPES.items()}
        os.mknod(
            path,
            types[kind] | int(mode, 8),
            os.makedev(int(major), int(minor)) if kind in ("char", "block") else 0,
        )

    def make(self, path: str, kind: str) -> None:
        """Make a file of any type."""
        if kind == "dir":
            os.mkdir(path)
        elif kind == "link":
            os.symlink("nothing", path)
        else:
            self.mknod(path, kind, "0644", "1", "3")

    def remove(self, path: str) -> None:
        """Remove a file of any type."""
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)

    def bind(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)

    def ls(self, path: str) -> str:
        return ",".join(sorted(os.listdir(path)))

    def chdir(self, path: str) -> None:
        os.chdir(path)

    # --- attributes ---

    def chmod(self, path: str, mode: str) -> None:
        os.chmod(path, int(mode, 8))

    def chown(self, path: str, uid: str, gid: str) -> None:
        os.chown(path, int(uid), int(gid))

    def lchown(self, path: str, uid: str, gid: str) -> None:
        os.lchown(path, int(uid), int(gid))

    def truncate(self, path: str, size: str) -> None:
        os.truncate(path, int(size))

    def utimes(self, path: str, atime: str = "now", mtime: str = "now") -> None:
        """Seconds, with or without nine digits behind a point, ``now`` or ``omit``."""
        utimensat(path, _time_ns(atime), _time_ns(mtime))

    def access(self, path: str, how: str) -> str:
        bits = sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}.get(letter, 0) for letter in how)
        return "yes" if os.access(path, bits) else "no"

    def stat(self, path: str, fields: str) -> str:
        return _shown(os.stat(path), fields)

    def lstat(self, path: str, fields: str) -> str:
        return _shown(os.lstat(path), fields)

    def same(self, one: str, other: str) -> str:
        return "yes" if os.path.samestat(os.lstat(one), os.lstat(other)) else "no"

    def setxattr(self, path: str, name: str, value: str, flags: str = "0") -> None:
        os.setxattr(path, name, value.encode(), int(flags))

    def getxattr(self, path: str, name: str) -> str:
        return os.getxattr(path, name).decode()

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name)

    def acl(self, path: str, kind: str, entries: str) -> None:
        """Set the list that getfacl(1) would write as *entries*, with ``u:alice:rw-`` and so on."""
        tags = {"u": (1, 2), "g": (4, 8), "m": (16, 16), "o": (32, 32)}
        value = struct.pack("<I", 2)
        for entry in entries.split(","):
            tag, name, rights = entry.split(":")
            bits = sum(1 << (2 - i) for i, letter in enumerate(rights) if letter != "-")
            number = USERS[name].uid if name else 0xFFFFFFFF
            value += struct.pack("<HHI", tags[tag][bool(name)], bits, number)
        os.setxattr(path, f"system.posix_acl_{kind}", value)

    # --- contents ---

    def open(self, path: str, flags: str, mode: str = "0644") -> None:
        os.close(os.open(path, _flags(flags), int(mode, 8)))

    def write(self, path: str, text: str, flags: str = "wronly") -> None:
        with self._opened(path, flags) as fd:
            os.write(fd, text.encode())

    def read(self, path: str) -> str:
        with self._opened(path, "rdonly") as fd:
            return os.read(fd, 4096).decode()

    def store(self, path: str, text: str) -> None:
        """Through a shared mapping, at the start of the file."""
        with self._opened(path, "rdwr") as fd, mmap.mmap(fd, 0) as memory:
            memory[: len(text)] = text.encode()
            memory.flush()

    # --- open files ---

    def hold(self, name: str, path: str, flags: str, mode: str = "0644") -> None:
        """Open, and keep the descriptor under a name until ``drop``."""
        self._held[name] = os.open(path, _flags(flags), int(mode, 8))

    def drop(self, name: str) -> None:
        os.close(self._held.pop(name))

    def fread(self, name: str, offset: str = "0") -> str:
        return os.pread(self._held[name], 4096, int(offset)).decode()

    def fwrite(self, name: str, text: str) -> None:
        os.write(self._held[name], text.encode())

    def ftruncate(self, name: str, size: str) -> None:
        os.ftruncate(self._held[name], int(size))

    def fchmod(self, name: str, mode: str) -> None:
        os.fchmod(self._held[name], int(mode, 8))

    def fchown(self, name: str, uid: str, gid: str) -> None:
        os.fchown(self._held[name], int(uid), int(gid))

    def fstat(self, name: str, fields: str) -> str:
        return _shown(os.fstat(self._held[name]), fields)

    def fls(self, name: str) -> str:
        return ",".join(sorted(os.listdir(self._held[name])))

    # --- the process ---

    def umask(self, mask: str) -> None:
        os.umask(int(mask, 8))

    def moves(self, paths: str, command: str, *arguments: str) -> str:
        pairs = [path.partition(">")[::2] for path in paths.split(",")]
        names = [old for old, _ in pairs]
        before = [os.lstat(name) for name in names]
        wait_for_clock_tick()
        failure = ""
        try:
            getattr(self, command)(*arguments)
            names = [new or old for old, new in pairs]
        except OSError as error:
            failure = errno.errorcode[error.errno or 0]
        moved = [_moved(one, os.lstat(name)) for one, name in zip(before, names, strict=True)]
        told = " ".join(f"{name}:{times}" for name, times in zip(names, moved, strict=True))
        if not failure:
            return told
        return failure if set(moved) == {"-"} else f"{failure} {told}"

    # --- not in scripts ---

    def enter(self, folder: str) -> None:
        """Begin a script in *folder*."""
        os.umask(0o022)
        os.chdir(folder)

    def leave(self) -> None:
        """End a script: close what it has left open."""
        os.chdir("/")
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    @contextlib.contextmanager
    def _opened(self, path: str, flags: str) -> Iterator[int]:
        fd = os.open(path, _flags(flags))
        try:
            yield fd
        finally:
            os.close(fd)


def _flags(text: str) -> int:
    flags = 0
    for word in text.split("|"):
        flags |= getattr(os, f"O_{word.upper()}")
    return flags


def _time_ns(text: str) -> str | int:
    if text in ("now", "omit"):
        return text
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 10**9 + int(fraction or 0)


def _shown(status: os.stat_result, fields: str) -> str:
    values = {
        "type": _TYPES[stat.S_IFMT(status.st_mode)],
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "size": status.st_size,
        "blocks": status.st_blocks,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "atime": status.st_atime_ns // 10**9,
        "mtime": status.st_mtime_ns // 10**9,
        "atime_ns": status.st_atime_ns % 10**9,
        "mtime_ns": status.st_mtime_ns % 10**9,
    }
    return ",".join(str(values[field]) for field in fields.split(","))


def _moved(before: os.stat_result, after: os.stat_result) -> str:
    times = {"a": "st_atime_ns", "m": "st_mtime_ns", "c": "st_ctime_ns"}
    letters = [key for key, name in times.items() if getattr(before, name) != getattr(after, name)]
    return "".join(letters) or "-"


class Actor:
    """A process that runs commands as one user."""

    def __init__(self, user: User) -> None:
        self._here, there = socket.socketpair()
        self._here.settimeout(ANSWER_SECONDS)
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.closerange(3, there.fileno())
                os.closerange(there.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
                os.setgroups(user.groups)
                os.setgid(user.gid)
                os.setuid(user.uid)
                _serve(there)
                code = 0
            finally:
                os._exit(code)
        there.close()

    def run(self, command: str, *arguments: str) -> str:
        """What *command* prints, ``ok``, or the name of its errno."""
        _send(self._here, (command, arguments))
        result, failure = _receive(self._here)
        if failure:
            raise AssertionError(failure)
        assert isinstance(result, str)
        return result

    def close(self) -> None:
        self._here.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve(peer: socket.socket) -> None:
    """The life of an actor, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands = _Commands()
    while True:
        try:
            command, arguments = _receive(peer)
        except EOFError:
            return
        try:
            answer: Any = (getattr(commands, command)(*arguments), None)
            answer = ("ok" if answer[0] is None else answer[0], None)
        except OSError as error:
            answer = (errno.errorcode.get(error.errno or 0, str(error)), None)
        except Exception as error:
            answer = (None, f"{type(error).__name__}: {error}")
        _send(peer, answer)


def _send(peer: socket.socket, value: Any) -> None:
    data = pickle.dumps(value)
    peer.sendall(struct.pack("I", len(data)) + data)


def _receive(peer: socket.socket) -> Any:
    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = peer.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    [size] = struct.unpack("I", exactly(4))
    return pickle.loads(exactly(size))


class Cast:
    """The actors of a module."""

    def __init__(self) -> None:
        self._actors = {name: Actor(user) for name, user in USERS.items()}

    def play(self, script: str, folder: Path) -> int:
        """Run *script* in *folder*; how many lines it has. All lines that went wrong are told."""
        for actor in self._actors.values():
            actor.run("enter", str(folder))
        wrong, count = [], 0
        try:
            for line in filter(None, map(_without_comment, script.splitlines())):
                call, _, result = line.rpartition("->")
                name, *words = [_expanded(word) for word in shlex.split(call)]
                expected = _expanded(" ".join(shlex.split(result)))
                got = self._actors[name].run(*words)
                count += 1
                if got != expected:
                    wrong.append(f"{line.strip()}\n    got {got[:200]}")
        finally:
            for actor in self._actors.values():
                actor.run("leave")
        assert not wrong, f"{len(wrong)} of {count} lines:\n" + "\n".join(wrong)
        return count

    def close(self) -> None:
        for actor in self._actors.values():
            actor.close()


def _without_comment(line: str) -> str:
    return line.partition("#")[0].strip()


def _expanded(text: str) -> str:
    return re.sub(r"\{(\d+)\}", lambda match: "n" * int(match[1]), text)
