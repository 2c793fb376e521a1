"""A filesystem on an anonymous image without a mount, for the tests of daxfs.fs."""

import stat
from typing import Any

from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

ROOT = Cred(0, 0)
PAGE = 4096
Tree = dict[bytes, tuple[Any, ...]]


class FsBox:
    """An image, formatted, and the filesystem mounted from it."""

    def __init__(self, size: int = 8 << 20, inodes: int | None = None, **options: Any) -> None:
        self.image = Image.anonymous(size)
        format_image(self.image, inodes=inodes)
        self.options = options
        self.kept: list[Inode] = []
        """Inodes that a test wants to stay in memory without a reference."""
        self.mount()

    @classmethod
    def of_bytes(cls, data: bytes, **options: Any) -> "FsBox":
        """Mount the image *data*, as a crash left it."""
        box = cls.__new__(cls)
        box.image = Image.anonymous(len(data))
        box.image.mem[:] = data
        box.options = options
        box.kept = []
        box.mount()
        return box

    def mount(self, **options: Any) -> FileSystem:
        self.persist = Persist(self.image, "memory")
        self.fs = FileSystem.mount(self.image, self.persist, **self.options | options)
        return self.fs

    def remount(self, **options: Any) -> FileSystem:
        """Unmount cleanly and mount again."""
        self.fs.unmount()
        self.persist.close()
        return self.mount(**options)

    def crash(self) -> FileSystem:
        """Mount again without an unmount, as after SIGKILL."""
        self.persist.close()
        return self.mount()

    def close(self) -> None:
        self.persist.close()
        self.image.close()

    @property
    def root(self) -> Inode:
        return self.fs.root

    def path(self, path: bytes) -> Inode:
        """The inode of a path from the root."""
        inode = self.fs.root
        for name in path.split(b"/"):
            inode = self.fs.lookup(inode, name) if name else inode
        return inode

    def file(self, name: bytes, data: bytes = b"", parent: Inode | None = None) -> Inode:
        inode = self.fs.create(parent or self.root, name, 0o644, ROOT)
        if data:
            assert self.fs.write(inode, 0, data) == len(data)
        return inode

    def data(self, inode: Inode) -> bytes:
        return bytes(self.fs.read(inode, 0, inode.size)[0])

    def pieces(self, inode: Inode) -> list[tuple[int, bytes]]:
        """The data of a file without its holes, which may be long: (position, bytes)."""
        return [
            (
                extent.pgoff * PAGE,
                bytes(self.fs.read(inode, extent.pgoff * PAGE, extent.count * PAGE)[0]),
            )
            for extent in self.fs.extents(inode)
        ]

    def names(self, directory: Inode | None = None) -> list[bytes]:
        return [entry.name for entry in self.fs.readdir(directory or self.root)][2:]

    def free(self) -> tuple[int, int]:
        """Free blocks and free inodes."""
        figures = self.fs.statfs()
        return figures.bfree, figures.ffree

    def tree(self) -> Tree:
        """Everything that a user can see but atime, by path."""
        found: Tree = {}
        self._visit(b"", self.root, found)
        return found

    def _visit(self, path: bytes, inode: Inode, found: Tree) -> None:
        fs = self.fs
        content: Any = None
        if inode.is_reg:
            content = self.pieces(inode)
        elif inode.is_symlink:
            content = fs.readlink(inode)
        elif inode.is_dir:
            content = (inode.parent, sorted((e.name, e.ino, e.type) for e in fs.readdir(inode)))
        attributes = {name: fs.getxattr(inode, name) for name in fs.listxattr(inode)}
        found[path or b"/"] = (
            *(inode.ino, stat.filemode(inode.mode), inode.uid, inode.gid, inode.nlink),
            *(inode.size, inode.blocks, inode.rdev, inode.generation, inode.flags),
            *(inode.mtime_ns, inode.ctime_ns, inode.crtime_ns),
            *(content, attributes),
        )
        if inode.is_dir:
            for name in self.names(inode):
                self._visit(path + b"/" + name, fs.lookup(inode, name), found)
