"""What a tree of names may be after a crash: ``Tree`` is the model, ``read_tree`` what is there."""

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from daxfs.testing.filemodel import FileModel, pattern

ROOT = "."


@dataclass
class Node:
    """An inode; names that are hard links of one another share it."""

    type: int
    mode: int
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    file: FileModel = field(default_factory=FileModel)


class Found(NamedTuple):
    """What is found at one name."""

    type: int
    mode: int
    ino: int
    nlink: int
    target: str
    xattrs: dict[str, bytes]
    contents: bytes


class Tree:
    """The names below one folder (which is ``.``), by their paths."""

    def __init__(self) -> None:
        self.nodes = {ROOT: Node(stat.S_IFDIR, 0o755)}

    def paths(self, *types: int) -> list[str]:
        """The paths of all inodes of *types*, but for the root."""
        return [path for path, node in self.nodes.items() if path != ROOT and node.type in types]

    def is_empty(self, folder: str) -> bool:
        """Whether the directory *folder* has no names."""
        return not any(path.startswith(folder + "/") for path in self.nodes)

    def rename(self, old: str, new: str, *, exchange: bool = False) -> None:
        """rename(2); a directory takes what is in it along."""
        moved = self._take(old)
        other = self._take(new)
        self.nodes |= {new + tail: node for tail, node in moved.items()}
        if exchange:
            self.nodes |= {old + tail: node for tail, node in other.items()}

    def _take(self, path: str) -> dict[str, Node]:
        taken = [p for p in self.nodes if p == path or p.startswith(path + "/")]
        return {p[len(path) :]: self.nodes.pop(p) for p in taken}

    def check(self, found: dict[str, Found]) -> str | None:
        """What is wrong with *found*; None if nothing is."""
        lost, extra = self.nodes.keys() - found.keys(), found.keys() - self.nodes.keys()
        if lost or extra:
            return f"lost: {sorted(lost)}, not expected: {sorted(extra)}"
        names: dict[int, list[str]] = {}
        for path, node in self.nodes.items():
            names.setdefault(id(node), []).append(path)
        if len({found[paths[0]].ino for paths in names.values()}) != len(names):
            return "files that are different have become one"
        for paths in names.values():
            for path in paths:
                wrong = self._wrong(path, found[path], found[paths[0]].ino, len(paths))
                if wrong is not None:
                    return f"{path}: {wrong}"
        return None

    def _wrong(self, path: str, found: Found, ino: int, names: int) -> str | None:
        node = self.nodes[path]
        if found.ino != ino:
            return "is no hard link any more"
        nlink = names
        if node.type == stat.S_IFDIR:
            prefix = "" if path == ROOT else path + "/"
            folders = [p for p in self.paths(stat.S_IFDIR) if p.startswith(prefix)]
            nlink = 2 + sum("/" not in p[len(prefix) :] for p in folders)
        expected = (node.type, node.mode, nlink, node.target, node.xattrs)
        actual = (found.type, found.mode, found.nlink, found.target, found.xattrs)
        if actual != expected:
            return f"{actual} instead of {expected}"
        return node.file.check(found.contents)

    def adopt(self, found: dict[str, Found]) -> None:
        """The contents of the files are those of *found*."""
        for path, node in self.nodes.items():
            node.file.adopt(found[path].contents)


def xattr_value(number: int, length: int) -> bytes:
    """The value that change *number* gives an attribute."""
    return pattern(number, length).tobytes()


def read_tree(top: Path) -> dict[str, Found]:
    """All that is found at *top* and below."""
    found = {ROOT: _read(top)}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(top))] = _read(path)
    return found


def _read(path: Path) -> Found:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    names = os.listxattr(path, follow_symlinks=False)
    return Found(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_ino,
        status.st_nlink,
        os.readlink(path) if kind == stat.S_IFLNK else "",
        {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
        contents(path) if kind == stat.S_IFREG else b"",
    )


def contents(path: Path) -> bytes:
    """The bytes of the file *path*; an error of close(2) is about somebody's writes, not these."""
    file = path.open("rb", buffering=0)
    try:
        return file.read()
    finally:
        with contextlib.suppress(OSError):
            file.close()
