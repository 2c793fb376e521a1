"""What must hold for an image that a crash left: the oracles.

    1 mounts         it mounts, nothing in it is damaged, and fsck finds nothing to repair
    2 atomic         the tree is the one before or the one after the operation in flight
    3 durable        what had returned before is there
    4 single         once the operation has returned there is one tree only
    5 stale          nothing that is visible, now or when files grow, was in a freed block
    6 bitmap         used are exactly the blocks that something owns; no orphan is left
    7 works          afterwards the filesystem works, and empty it is as free as after mkfs

Oracles 1, 5, 6 and 7 concern the image alone (``examine``); 2, 3 and 4 compare its tree with what
is legal at the point of the crash (``Legal``). In an image under test freed and free blocks are
full of ``STALE``, which no program writes.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from daxfs.errors import FsckExit, FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.fsck.checker import check_image
from daxfs.ondisk.layout import FILE_SIZE_MAX, STATE_ERROR, STATE_OFFSET
from daxfs.ondisk.tree import Extent
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Domain, Persist
from daxfs.units import PAGE_SHIFT, PAGE_SIZE

STALE: Final = 0xDB
"""The byte of freed blocks."""
WORD: Final = 8

Tree = dict[str, tuple[Any, ...]]
"""What a user can see of each path: attributes, then contents, then extended attributes."""
MakePersist = Callable[[Image, Domain], Persist]

_ROOT: Final = Cred(0, 0)
_CONTENT: Final = -2
_STALE: Final = bytes([STALE])
_WORKS: Final = b"afterwards"
_ROOM: Final = 8
"""Free blocks with which a new folder, a file and its blocks find a place."""


# --- trees ---------------------------------------------------------------------------------------


@contextmanager
def _without_atime(fs: FileSystem) -> Iterator[None]:
    options = fs.options
    fs.options = options._replace(atime="noatime")
    try:
        yield
    finally:
        fs.options = options


def visible_tree(fs: FileSystem) -> Tree:
    """Everything that a user of *fs* can see, by path; changes nothing. EUCLEAN and so on."""
    found: Tree = {}
    with _without_atime(fs):
        _visit(fs, "/", fs.root, found)
    return found


def _visit(fs: FileSystem, path: str, inode: Inode, found: Tree) -> None:
    content: Any = None
    entries = []
    if inode.is_reg:
        content = _pieces(fs, inode)
    elif inode.is_symlink:
        content = fs.readlink(inode)
    elif inode.is_dir:
        entries = [entry for entry in fs.readdir(inode) if entry.name not in (b".", b"..")]
        content = inode.parent, tuple(sorted((e.name, e.ino, e.type) for e in entries))
    found[path] = (
        *(inode.ino, inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.blocks),
        *(inode.rdev, inode.generation, inode.flags),
        *(inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.crtime_ns),
        content,
        tuple(sorted((name, fs.getxattr(inode, name)) for name in fs.listxattr(inode))),
    )
    for entry in entries:
        _visit(fs, _join(path, entry.name), fs.lookup(inode, entry.name), found)


def _pieces(fs: FileSystem, inode: Inode) -> tuple[tuple[int, int, bytes], ...]:
    """The blocks of a file: (first page, pages, their bytes up to the end of the file)."""
    return tuple(
        (
            extent.pgoff,
            extent.count,
            bytes(fs.read(inode, extent.pgoff << PAGE_SHIFT, extent.count << PAGE_SHIFT)[0]),
        )
        for extent in fs.extents(inode)
    )


def stale_paths(tree: Tree) -> list[str]:
    """The paths of *tree* in which a byte of a freed block is visible."""
    return [path for path, entry in tree.items() if _is_stale(entry)]


def _is_stale(entry: tuple[Any, ...]) -> bool:
    content = entry[_CONTENT]
    values = [value for _, value in entry[-1]]
    if isinstance(content, bytes):
        values.append(content)
    elif content and isinstance(content[0], int):
        values += [name for name, _, _ in content[1]]
    elif content:
        values += [data for _, _, data in content]
    return any(_STALE in value for value in values)


def difference(tree: Tree, other: Tree) -> str:
    """The first difference between two trees, as a line for a person."""
    for path in sorted(tree.keys() | other.keys()):
        if path not in other:
            return f"{path} is there"
        if path not in tree:
            return f"{path} is missing"
        for name, one, two in zip(_NAMES, tree[path], other[path], strict=True):
            if one != two:
                return f"{path}: {name} is {_short(one)}, not {_short(two)}"
    return "none"


_NAMES: Final = (
    *("inode", "mode", "uid", "gid", "nlink", "size", "blocks", "rdev", "generation", "flags"),
    *("atime", "mtime", "ctime", "crtime", "content", "attributes"),
)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


@dataclass
class Legal:
    """What may be visible after a crash in one phase of a log."""

    name: str
    before: Tree
    after: Tree
    """Equal to *before* where nothing is in flight."""
    mixed: bool = False
    """Whether words of files that are overwritten in place may be old or new while the tree is
    *before*."""

    def fault(self, tree: Tree) -> str | None:
        """What is wrong with *tree*, or None."""
        if tree in (self.before, self.after):
            return None
        if self.mixed and is_mixture(tree, self.before, self.after):
            return None
        if self.before is self.after:
            return f"3 durable: after {self.name}: {difference(tree, self.after)}"
        return (
            f"2 atomic: in {self.name}: not as before ({difference(tree, self.before)}) "
            f"nor as after ({difference(tree, self.after)})"
        )


def is_mixture(tree: Tree, before: Tree, after: Tree) -> bool:
    """Whether *tree* is *before* but for words of file data that are as in *after*."""
    if tree.keys() != before.keys():
        return False
    for path, entry in tree.items():
        old = before[path]
        if entry == old:
            continue
        new = after.get(path)
        if new is None or entry[:_CONTENT] != old[:_CONTENT] or entry[-1] != old[-1]:
            return False
        if not _words_mixed(entry[_CONTENT], old[_CONTENT], new[_CONTENT]):
            return False
    return True


def _words_mixed(got: Any, old: Any, new: Any) -> bool:
    if not all(isinstance(content, tuple) for content in (got, old, new)):
        return False
    if [piece[:2] for piece in got] != [piece[:2] for piece in old]:
        return False
    for (page, _, here), (_, _, was) in zip(got, old, strict=True):
        if here == was:
            continue
        will = _bytes_at(new, page << PAGE_SHIFT, len(was))
        words = [
            np.frombuffer(data + bytes(-len(data) % WORD), np.uint64) for data in (here, was, will)
        ]
        if len(here) != len(was) or not ((words[0] == words[1]) | (words[0] == words[2])).all():
            return False
    return True


def _bytes_at(content: Any, start: int, length: int) -> bytes:
    """*length* bytes from *start* on of the file with the pieces *content*."""
    data = bytearray(length)
    for page, _, piece in content:
        low = (page << PAGE_SHIFT) - start
        first, last = max(low, 0), min(low + len(piece), length)
        if first < last:
            data[first:last] = piece[first - low : last - low]
    return bytes(data)


# --- the image -----------------------------------------------------------------------------------


@dataclass
class Findings:
    """What ``examine`` found in one recovered image."""

    tree: Tree = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """Beginning with the number and the name of the oracle."""
    places: dict[str, list[Extent]] = field(default_factory=dict)
    """Where the blocks of each regular file are."""
    tails: tuple[tuple[int, int], ...] = ()
    """The bytes of the image, as (offset, length), that lie behind the end of a file in its last
    page."""
    dirty_tails: tuple[bool, ...] = ()
    """Which of them are not all zeroes."""

    def with_data(self, mem: memoryview) -> "Findings":
        """The same for an image *mem* that differs in the bytes of regular files alone."""
        tree = dict(self.tree)
        for path, extents in self.places.items():
            entry = tree[path]
            pieces = tuple(
                (page, count, old if extent.unwritten else _piece(mem, extent, len(old)))
                for extent, (page, count, old) in zip(extents, entry[_CONTENT], strict=True)
            )
            tree[path] = (*entry[:_CONTENT], pieces, entry[-1])
        faults = list(self.faults)
        if stale := stale_paths(tree):
            faults.append(f"5 stale: freed bytes are visible in {', '.join(stale)}")
        return Findings(tree, faults)


def _piece(mem: memoryview, extent: Extent, length: int) -> bytes:
    start = extent.block << PAGE_SHIFT
    return bytes(mem[start : start + length])


def dirty_tails(mem: memoryview, tails: tuple[tuple[int, int], ...]) -> tuple[bool, ...]:
    """Which of *tails* (offset, length) are not all zeroes."""
    return tuple(
        bytes(mem[offset : offset + length]).count(0) != length for offset, length in tails
    )


def _note_places(fs: FileSystem, findings: Findings) -> None:
    tails = []
    for path, inode in _files(fs, fs.root, "/"):
        extents = findings.places[path] = fs.extents(inode)
        page, within = divmod(inode.size, PAGE_SIZE)
        for extent in extents:
            if within and extent.pgoff <= page < extent.pgoff + extent.count:
                start = (extent.block + page - extent.pgoff << PAGE_SHIFT) + within
                tails.append((start, PAGE_SIZE - within))
    findings.tails = tuple(tails)
    findings.dirty_tails = dirty_tails(fs.image.mem, findings.tails)


def mount(image: Image, make_persist: MakePersist, **options: Any) -> FileSystem:
    """Mount *image* as the oracles do."""
    persist = make_persist(image, "memory")
    return FileSystem.mount(image, persist, atime="noatime", enable_acl=True, **options)


def examine(image: Image, make_persist: MakePersist) -> Findings:
    """Mount the crashed *image*, use it, delete everything; it is another one afterwards."""
    findings = Findings()
    oracle = "1 mounts"
    try:
        fs = mount(image, make_persist)
        findings.tree = visible_tree(fs)
        _note_places(fs, findings)
        oracle = "5 stale"
        if stale := stale_paths(findings.tree):
            findings.faults.append(f"5 stale: freed bytes are visible in {', '.join(stale)}")
        oracle = "6 bitmap"
        _unmount(fs)
        _check(image, oracle, findings)
        oracle = "7 works"
        fs = mount(image, make_persist)
        if visible_tree(fs) != findings.tree:
            text = difference(visible_tree(fs), findings.tree)
            findings.faults.append(f"4 single: another mount sees another tree: {text}")
        findings.faults += _grow_all(fs)
        _use(fs)
        findings.faults += _delete_all(fs)
        _use(fs)
        findings.faults += _free_again(fs)
        _unmount(fs)
        _check(image, oracle, findings)
    except Exception as error:  # whatever it is, it is a finding
        findings.faults.append(f"{oracle}: {type(error).__name__}: {error}")
    return findings


def _unmount(fs: FileSystem) -> None:
    damaged = fs.persist.load_u64(STATE_OFFSET) == STATE_ERROR
    fs.unmount()
    fs.persist.close()
    if damaged:
        raise FsError(errno.EUCLEAN, "the mount met damage")


def _check(image: Image, oracle: str, findings: Findings) -> None:
    """fsck, which may not write."""
    said: list[str] = []
    if check_image(image, repair=False, say=said.append) != FsckExit.CLEAN:
        findings.faults.append(f"{oracle}: fsck: {'; '.join(said)}")


def _files(fs: FileSystem, directory: Inode, path: str) -> Iterator[tuple[str, Inode]]:
    """The regular files below *directory*, which is at *path*."""
    for entry in list(fs.readdir(directory))[2:]:
        inode = fs.lookup(directory, entry.name)
        below = _join(path, entry.name)
        if inode.is_dir:
            yield from _files(fs, inode, below)
        elif inode.is_reg:
            yield below, inode


def _join(path: str, name: bytes) -> str:
    return f"{path.rstrip('/')}/{name.decode(errors='backslashreplace')}"


def _grow_all(fs: FileSystem) -> list[str]:
    """Make each file longer: what is new must read as zeroes (oracle 5)."""
    faults = []
    for _, inode in _files(fs, fs.root, "/"):
        size = inode.size
        fs.setattr(inode, AttrChanges(size=min(size + 2 * PAGE_SIZE, FILE_SIZE_MAX)))
        if any(fs.read(inode, size, 2 * PAGE_SIZE)[0]):
            faults.append(f"5 stale: inode {inode.ino} shows bytes behind its old end {size}")
    return faults


def _use(fs: FileSystem) -> None:
    """Create, write, rename and remove, if there is room for it."""
    figures = fs.statfs()
    if figures.bfree < _ROOM or figures.ffree < 2:
        return
    folder = fs.mkdir(fs.root, _WORKS, 0o755, _ROOT)
    file = fs.create(fs.root, _WORKS + b" a file", 0o644, _ROOT)
    data = b"works" * 1000
    fs.write(file, 0, data)
    fs.rename(fs.root, _WORKS + b" a file", folder, _WORKS)
    if fs.lookup(folder, _WORKS) is not file or fs.read(file, 0, 2 * len(data))[0] != data:
        raise FsError(errno.EIO, "a new file does not hold what was written to it")
    del file
    fs.unlink(folder, _WORKS)
    fs.rmdir(fs.root, _WORKS)


def _delete_all(fs: FileSystem) -> list[str]:
    def empty(directory: Inode) -> None:
        for entry in list(fs.readdir(directory))[2:]:
            inode = fs.lookup(directory, entry.name)
            if inode.is_dir:
                empty(inode)
                del inode
                fs.rmdir(directory, entry.name)
            else:
                del inode
                fs.unlink(directory, entry.name)

    empty(fs.root)
    left = [entry.name for entry in fs.readdir(fs.root)][2:]
    return [f"7 works: names that cannot be deleted: {left}"] if left else []


def _free_again(fs: FileSystem) -> list[str]:
    """Whether an empty filesystem is as free as after mkfs."""
    for name in fs.listxattr(fs.root):
        fs.removexattr(fs.root, name)
    figures = fs.statfs()
    if (figures.bfree, figures.ffree) == (figures.blocks, figures.files - 1):
        return []
    return [
        f"7 works: empty, {figures.blocks - figures.bfree} blocks and "
        f"{figures.files - figures.ffree} inodes are used"
    ]
