"""Extended attributes: one blob an inode, written anew at each change.

Kernel counterpart: fs/ext4/xattr.c (names and errors: xattr(7)).

Invariants
- The blob stands in blocks of its own, mapped by the tree ``xattr_root`` of the inode. A change
  writes a new blob into new blocks and then swaps the root in the inode row, so that a crash
  leaves the one or the other.
- An inode without attributes has no blob.
- With access control lists enabled, the access list and the mode bits always agree, and a list
  that says no more than the mode is not stored.
"""

import contextlib
import errno
import stat
from typing import Final

import google_crc32c

from daxfs.errors import CorruptionError, FsError
from daxfs.fs import acl
from daxfs.fs.core import Core, Operation
from daxfs.fs.inode import Inode
from daxfs.ondisk.acl import XATTR_ACCESS, XATTR_DEFAULT, Acl
from daxfs.ondisk.acl import decode as decode_acl
from daxfs.ondisk.acl import encode as encode_acl
from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    NAME_MAX,
    XATTR_HEADER,
    XATTR_MAGIC,
    XATTR_RECORD,
    XATTR_TOTAL_MAX,
    XATTR_VALUE_MAX,
)

PREFIXES: Final = (b"user.", b"trusted.", b"security.")
XATTR_LIST_MAX: Final = 64 << 10
"""Bytes of all names of an inode, each with a NUL: more of them listxattr(2) cannot list."""


def decode_blob(ino: int, blob: bytes) -> dict[bytes, bytes]:
    """The attributes in *blob*, header included. EUCLEAN if it is damaged."""
    magic, crc, length, count = XATTR_HEADER.unpack_from(blob)
    payload = blob[XATTR_HEADER.size : XATTR_HEADER.size + length]
    if magic != XATTR_MAGIC or len(payload) != length or google_crc32c.value(payload) != crc:
        raise CorruptionError(f"inode {ino}: the extended attributes are damaged")
    attributes = {}
    place = 0
    for _ in range(count):
        if place + XATTR_RECORD.size > length:
            raise CorruptionError(f"inode {ino}: the extended attributes are cut off")
        name_len, value_len = XATTR_RECORD.unpack_from(payload, place)
        start = place + XATTR_RECORD.size
        place = start + name_len + value_len
        if place > length:
            raise CorruptionError(f"inode {ino}: the extended attributes are cut off")
        name = payload[start : start + name_len]
        is_legal = 0 < name_len <= NAME_MAX and value_len <= XATTR_VALUE_MAX and b"\0" not in name
        if not is_legal or name in attributes:
            raise CorruptionError(f"inode {ino}: the extended attribute {name!r} cannot be")
        attributes[name] = payload[start + name_len : place]
    return attributes


def encode_blob(attributes: dict[bytes, bytes]) -> bytes:
    """The blob that holds *attributes*."""
    payload = b"".join(
        XATTR_RECORD.pack(len(name), len(value)) + name + value
        for name, value in attributes.items()
    )
    crc = google_crc32c.value(payload)
    return XATTR_HEADER.pack(XATTR_MAGIC, crc, len(payload), len(attributes)) + payload


def _stored_acl(inode: Inode, value: bytes) -> Acl:
    """The access control list *value* that *inode* has on the image. EUCLEAN."""
    with contextlib.suppress(FsError):
        entries = decode_acl(value)
        if entries:
            return entries
    raise CorruptionError(f"inode {inode.ino}: its access control list is damaged")


class XattrOperations(Core):
    """getxattr, setxattr, listxattr, removexattr, and what inherits lists."""

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        """The value of *name*. ENODATA, ERANGE, EOPNOTSUPP, EUCLEAN."""
        self._check_xattr(inode, name, errno.ENODATA)
        value = self._xattrs(inode).get(name)
        if value is None:
            raise FsError(errno.ENODATA)
        return value

    def listxattr(self, inode: Inode) -> list[bytes]:
        """The names of all attributes, trusted ones too: who may see those is the caller's."""
        names = self._xattrs(inode)
        return [
            name for name in names if self.options.enable_acl or not name.startswith(b"system.")
        ]

    def setxattr(self, inode: Inode, name: bytes, value: bytes, *, keep_sgid: bool = True) -> None:
        """Set *name* to *value*; *keep_sgid*: False if an access list takes sgid from the mode.

        E2BIG for a value over 64 KiB, ERANGE for a name over 255 bytes, EPERM for user.* on
        neither file nor directory, EOPNOTSUPP for an unknown namespace, ENOSPC.
        """
        self._check_xattr(inode, name, errno.EPERM)
        if len(value) > XATTR_VALUE_MAX:
            raise FsError(errno.E2BIG)
        with self.operation() as op:
            if name in (XATTR_ACCESS, XATTR_DEFAULT):
                self._set_acl(op, inode, name, value)
                if name == XATTR_ACCESS and not keep_sgid:
                    inode.mode &= ~stat.S_ISGID
            else:
                self._store_xattrs(op, inode, self._xattrs(inode) | {name: bytes(value)})
            inode.ctime_ns = op.now_ns

    def removexattr(self, inode: Inode, name: bytes) -> None:
        """Remove *name*. ENODATA if it is not there; otherwise as setxattr."""
        self._check_xattr(inode, name, errno.EPERM)
        attributes = self._xattrs(inode)
        with self.operation() as op:
            if name not in attributes:
                raise FsError(errno.ENODATA)
            self._store_xattrs(op, inode, {k: v for k, v in attributes.items() if k != name})
            inode.ctime_ns = op.now_ns

    def _check_xattr(self, inode: Inode, name: bytes, special: int) -> None:
        """Raise unless *inode* can have *name*; *special*: errno of user.* on special files."""
        if len(name) > NAME_MAX:
            raise FsError(errno.ERANGE)
        if name in (XATTR_ACCESS, XATTR_DEFAULT):
            if not self.options.enable_acl or inode.is_symlink:
                raise FsError(errno.EOPNOTSUPP)
            return
        if not name.startswith(PREFIXES):
            raise FsError(errno.EOPNOTSUPP)
        if name in PREFIXES:
            raise FsError(errno.EINVAL)
        if name.startswith(b"user.") and not (inode.is_reg or inode.is_dir):
            raise FsError(special)

    # --- the blob --------------------------------------------------------------------------------

    def _xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """The attributes of *inode*; not to be changed in place."""
        if inode.xattrs is None:
            inode.xattrs = self._load_xattrs(inode) if inode.xattr_root else {}
        return inode.xattrs

    def _load_xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        pages = XATTR_TOTAL_MAX // BLOCK_SIZE
        parts: list[memoryview] = []
        page = 0
        while page < pages:
            run = self.map.lookup(inode.xattr_root, page, pages - page)
            if not run.block or run.unwritten:
                break
            start = run.block * BLOCK_SIZE
            parts.append(self.image.load(start, run.pages * BLOCK_SIZE))
            page += run.pages
        if not parts:
            raise CorruptionError(f"inode {inode.ino}: the extended attributes are missing")
        return decode_blob(inode.ino, b"".join(parts))

    def _store_xattrs(self, op: Operation, inode: Inode, attributes: dict[bytes, bytes]) -> None:
        """Make *attributes* those of *inode*.

        Ordering: the new blob goes into free blocks; the row, which is logged, changes over to it;
        the blocks of the old blob are free after the commit.

        ENOSPC, also for more than XATTR_TOTAL_MAX bytes, or XATTR_LIST_MAX bytes of names.
        """
        root = grown = 0
        if attributes:
            if sum(map(len, attributes)) + len(attributes) > XATTR_LIST_MAX:
                raise FsError(errno.ENOSPC, "the names of the extended attributes are too long")
            blob = encode_blob(attributes)
            if len(blob) > XATTR_TOTAL_MAX:
                raise FsError(errno.ENOSPC, "the extended attributes of one file are too large")
            root, grown = self._write_blob(op, blob)
        op.change(inode)
        shrunk = self.map.clear(op.tx, inode.xattr_root, 0)
        inode.xattr_root = root
        inode.blocks += grown + shrunk.blocks
        inode.xattrs = attributes

    def _write_blob(self, op: Operation, blob: bytes) -> tuple[int, int]:
        """Write *blob* into new blocks: the root of their tree, and how many blocks it took."""
        pages = -(-len(blob) // BLOCK_SIZE)
        padded = blob.ljust(pages * BLOCK_SIZE, b"\0")
        root = page = grown = 0
        for block, count in self.blocks.alloc(op.tx, pages):
            part = padded[page * BLOCK_SIZE : (page + count) * BLOCK_SIZE]
            self.persist.store(block * BLOCK_SIZE, part)
            self.persist.flush(block * BLOCK_SIZE, len(part))
            change = self.map.publish(op.tx, root, page, block, count)
            root, grown, page = change.root, grown + change.blocks, page + count
        return root, grown

    # --- access control lists --------------------------------------------------------------------

    def _set_acl(self, op: Operation, inode: Inode, name: bytes, value: bytes) -> None:
        """Set the access or default list; EINVAL, EACCES (a default list of a file), ENOSPC."""
        entries = decode_acl(value)
        attributes = dict(self._xattrs(inode))
        attributes.pop(name, None)
        op.change(inode)
        if name == XATTR_ACCESS:
            if entries:
                inode.mode = inode.mode & ~0o777 | acl.mode_bits(entries)
            if not acl.is_trivial(entries):
                attributes[name] = encode_acl(entries)
        elif entries:
            if not inode.is_dir:
                raise FsError(errno.EACCES)
            attributes[name] = encode_acl(entries)
        if attributes != self._xattrs(inode):
            self._store_xattrs(op, inode, attributes)

    def _chmod_acl(self, op: Operation, inode: Inode) -> None:
        """Bring the access list of *inode* into step with its new mode."""
        if not self.options.enable_acl:
            return
        attributes = self._xattrs(inode)
        value = attributes.get(XATTR_ACCESS)
        if value is None:
            return
        entries = acl.with_mode(_stored_acl(inode, value), inode.mode)
        if encode_acl(entries) != value:
            changed = attributes | {XATTR_ACCESS: encode_acl(entries)}
            self._store_xattrs(op, inode, changed)

    def _inherited(self, directory: Inode, mode: int, umask: int) -> tuple[int, dict[bytes, bytes]]:
        """Mode and attributes of a child made in *directory* with *mode* (file type included)."""
        if stat.S_ISLNK(mode):
            return mode, {}
        value = None
        if self.options.enable_acl:
            value = self._xattrs(directory).get(XATTR_DEFAULT)
        if value is None:
            return mode & ~(umask & 0o777), {}
        access, mode = acl.inherit(_stored_acl(directory, value), mode)
        attributes = {} if acl.is_trivial(access) else {XATTR_ACCESS: encode_acl(access)}
        if stat.S_ISDIR(mode):
            attributes[XATTR_DEFAULT] = value
        return mode, attributes
