"""The ioctls of files and directories: the inode flags, of which there is one, FS_XFLAG_DAX.

Kernel counterpart: ext4_fileattr_get() and ext4_fileattr_set(). The kernel has checked that the
caller owns the inode, and has turned what other systems' programs pass into these four.

A change of the flag takes effect at the next open of a file that nobody has open; a directory hands
its flag on to what is made in it.
"""

import errno
import struct
from typing import Final

from daxfs.errors import FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.super import FileSystem
from daxfs.ondisk.layout import FLAG_DAX

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820

FS_DAX_FL: Final = 0x02000000
FS_XFLAG_DAX: Final = 0x8000

_FLAGS: Final = struct.Struct("=I")
"""The argument of the first two: an int, though their numbers say long."""
_FSXATTR: Final = struct.Struct("=5I8x")
"""struct fsxattr: fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize."""


def ioctl(fs: FileSystem, inode: Inode, command: int, argument: bytes, length: int) -> bytes:
    """The answer to *command*; *argument*: what the caller passes, *length*: what it takes.

    ENOTTY: no such command. EOPNOTSUPP: a flag that is not kept. EINVAL: *argument* or *length* do
    not fit the command. EROFS.
    """
    is_dax = bool(inode.flags & FLAG_DAX)
    if command == FS_IOC_GETFLAGS:
        return _answer(_FLAGS.pack(FS_DAX_FL if is_dax else 0), length)
    if command == FS_IOC_FSGETXATTR:
        return _answer(_FSXATTR.pack(FS_XFLAG_DAX if is_dax else 0, 0, 0, 0, 0), length)
    if command == FS_IOC_SETFLAGS:
        (flags,) = _unpack(_FLAGS, argument)
        known, others = FS_DAX_FL, False
    elif command == FS_IOC_FSSETXATTR:
        flags, extsize, _, projid, cowextsize = _unpack(_FSXATTR, argument)
        known, others = FS_XFLAG_DAX, bool(extsize or projid or cowextsize)
    else:
        raise FsError(errno.ENOTTY)
    if flags & ~known or others:
        raise FsError(errno.EOPNOTSUPP)
    if bool(flags) != is_dax:
        fs.setattr(inode, AttrChanges(flags=FLAG_DAX if flags else 0))
    return b""


def _answer(value: bytes, length: int) -> bytes:
    if len(value) != length:
        raise FsError(errno.EINVAL)
    return value


def _unpack(form: struct.Struct, argument: bytes) -> tuple[int, ...]:
    if len(argument) != form.size:
        raise FsError(errno.EINVAL)
    return form.unpack(argument)
