"""POSIX access control lists as bytes: the form that Linux passes to setxattr(2).

Kernel counterpart: include/uapi/linux/posix_acl_xattr.h.

A list is version 2, then entries (tag, perm, id), in the order owner, users, group, groups, mask,
other.
"""

import errno
import struct
from typing import Final, NamedTuple

from daxfs.errors import FsError

XATTR_ACCESS: Final = b"system.posix_acl_access"
XATTR_DEFAULT: Final = b"system.posix_acl_default"

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_ID_UNDEFINED: Final = 0xFFFFFFFF


class AclEntry(NamedTuple):
    """One line of a list."""

    tag: int
    perm: int
    id: int = _ID_UNDEFINED


Acl = list[AclEntry]


def decode(value: bytes) -> Acl:
    """The list in the xattr *value*. EINVAL if it has not the form of one; empty: no list."""
    if value in (b"", _VERSION):
        return []
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        raise FsError(errno.EINVAL, "not an access control list")
    acl = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:])]
    tags = [entry.tag for entry in acl]
    named = USER in tags or GROUP in tags
    if (
        tags != sorted(tags)
        or any(entry.perm & ~7 for entry in acl)
        or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or not (1 if named else 0) <= tags.count(MASK) <= 1
        or set(tags) - {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER}
    ):
        raise FsError(errno.EINVAL, "not a valid access control list")
    return acl


def encode(acl: Acl) -> bytes:
    """The xattr value of *acl*."""
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in acl)
