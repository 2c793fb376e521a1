"""The inode in memory.

Kernel counterpart: struct inode and struct ext4_inode_info.

Life cycle
- A row of the inode table is in use when its mode is not 0. ``FileSystem.iget`` reads it into an
  ``Inode``; there is at most one Inode of a number at any time, so it may be compared by identity.
- A caller that answers the kernel with an inode takes a lookup reference (``ref``) and gives back
  what the kernel forgets (``forget``); ``open`` and ``release`` count open files. An inode without
  references is only held by whoever works on it, and leaves memory with them.
- The last unlink sets ``nlink`` to 0. While references are left the row stays, as an orphan; when
  the last goes, blocks and row are freed in one transaction. The next mount frees orphans that a
  crash left behind.
- The row goes to the image in the transaction that changed the inode, as a whole. If the
  transaction is aborted, the fields are read again.
- ``generation`` grows each time that the row is reused, so an NFS handle of the old file is stale.

Typical sequence: ``inode = fs.lookup(directory, name); fs.ref(inode); fs.open(inode, flags);
fs.read(inode, ...); fs.release(inode); fs.forget(inode.ino, 1)``.
"""

import stat
from typing import TYPE_CHECKING, Final

from daxfs.dax.mapping import Mapping
from daxfs.ondisk import layout
from daxfs.ondisk.mapentry import root_height
from daxfs.units import SECTOR_SIZE

if TYPE_CHECKING:
    from daxfs.fs.dir import DirectoryIndex

TIME_MIN_NS: Final = -(1 << 63)
TIME_MAX_NS: Final = (1 << 63) - 1


def clamp_time(time_ns: int) -> int:
    """*time_ns* cut to what an inode row can hold."""
    return max(TIME_MIN_NS, min(TIME_MAX_NS, time_ns))


class Inode:
    """One inode in memory; implements DaxInode. Sizes in bytes, times in ns, blocks of 4 KiB."""

    __slots__ = (
        "__weakref__",
        "atime_ns",
        "blocks",
        "crtime_ns",
        "ctime_ns",
        "directory",
        "flags",
        "generation",
        "gid",
        "ino",
        "is_dax",
        "map_root",
        "mapping",
        "mode",
        "mtime_ns",
        "nlink",
        "nlookup",
        "nopen",
        "parent",
        "rdev",
        "reservations",
        "size",
        "uid",
        "xattr_root",
        "xattrs",
    )

    mode: int
    uid: int
    gid: int
    nlink: int
    flags: int
    generation: int
    rdev: int
    size: int
    blocks: int
    map_root: int
    xattr_root: int
    parent: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int

    def __init__(self, ino: int, raw: bytes | memoryview) -> None:
        """Inode *ino* from its row *raw*; CorruptionError if the row is damaged."""
        self.ino = ino
        self.mapping = Mapping(ino)
        self.is_dax = False
        """Whether hole pages of this file are kept out of the kernel; fixed while open."""
        self.nlookup = 0
        self.nopen = 0
        self.directory: DirectoryIndex | None = None
        """The name index, built on first use (directories only)."""
        self.xattrs: dict[bytes, bytes] | None = None
        """The extended attributes, read on first use."""
        self.reservations: dict[int, int] = {}
        """First block of the soft-reserved chunk by 2 MiB range of the file."""
        self.decode(raw)

    def decode(self, raw: bytes | memoryview) -> None:
        """Set the fields of the row from *raw*."""
        (
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.flags,
            self.generation,
            self.rdev,
            self.size,
            self.blocks,
            self.map_root,
            self.xattr_root,
            self.parent,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.crtime_ns,
        ) = layout.decode_inode(self.ino, raw)

    def encode(self) -> bytes:
        """The row of this inode."""
        return layout.encode_inode(
            self.ino,
            (
                self.mode,
                self.uid,
                self.gid,
                self.nlink,
                self.flags,
                self.generation,
                self.rdev,
                self.size,
                self.blocks,
                self.map_root,
                self.xattr_root,
                self.parent,
                self.atime_ns,
                self.mtime_ns,
                self.ctime_ns,
                self.crtime_ns,
            ),
        )

    def clear(self) -> None:
        """Make it a free inode; its generation stays."""
        generation = self.generation
        self.decode(bytes(layout.INODE_SIZE))
        self.generation = generation

    @property
    def st_blocks(self) -> int:
        """What stat(2) and du(1) tell, in units of 512 bytes.

        A map of one node, which other filesystems keep in the inode, is not counted: a small file
        takes as many blocks as it has pages with data.
        """
        node = self.blocks > 0 and root_height(self.map_root) == 1
        return (self.blocks - node) * (layout.BLOCK_SIZE // SECTOR_SIZE)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_reg(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def type(self) -> int:
        """The file type as a DT_ value of readdir(3)."""
        return stat.S_IFMT(self.mode) >> 12

    @property
    def in_use(self) -> bool:
        """Whether the kernel or an open file refers to it."""
        return self.nlookup > 0 or self.nopen > 0

    def __repr__(self) -> str:
        return f"<Inode {self.ino} {stat.filemode(self.mode)} nlink={self.nlink} size={self.size}>"
