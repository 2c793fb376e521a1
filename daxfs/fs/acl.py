"""POSIX access control lists: the arithmetic between lists and mode bits.

Kernel counterpart: fs/posix_acl.c. The kernel checks access (default_permissions with POSIX ACL
support); here lists are kept in step with the mode, and inherited. Their form is ondisk.acl.
"""

from daxfs.ondisk.acl import GROUP_OBJ, MASK, OTHER, USER_OBJ, Acl


def is_trivial(acl: Acl) -> bool:
    """Whether *acl* says no more than mode bits can (posix_acl_equiv_mode)."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in acl)


def mode_bits(acl: Acl) -> int:
    """The nine permission bits that *acl* means; the mask stands for the group."""
    perms = {entry.tag: entry.perm for entry in acl}
    return perms[USER_OBJ] << 6 | perms.get(MASK, perms[GROUP_OBJ]) << 3 | perms[OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """*acl* after a chmod to *mode* (posix_acl_chmod)."""
    group = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    perms = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return [entry._replace(perm=perms.get(entry.tag, entry.perm)) for entry in acl]


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """The access list and mode of a child made with *mode* under *default* (posix_acl_create)."""
    bits = mode_bits(default) & mode & 0o777
    return with_mode(default, bits), mode & ~0o777 | bits
