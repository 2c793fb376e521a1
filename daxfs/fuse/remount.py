"""Remount: make a mount read-only or writable, and change the flags that the kernel looks after.

Kernel counterpart: mount(2) with MS_REMOUNT, ext4_reconfigure().

The kernel refuses what programs ask of a read-only mount; the daemon, told over its control socket,
stops to set access times, and makes the image a clean one. Between the two steps the stricter rule
holds: the kernel is the first to forbid and the last to allow.
"""

import ctypes
import os
from typing import Final

from daxfs.fuse.control import Client
from daxfs.fuse.mountinfo import FSTYPE, MountEntry, mount_at
from daxfs.fuse.mounting import failure
from daxfs.fuse.options import MountOptions

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_REMOUNT: Final = 32
_MS_NOATIME: Final = 1024
# As of libfuse: what is not allowed is forbidden. The kernel changes no others at a remount.
_FORBIDDING: Final = {"suid": _MS_NOSUID, "dev": _MS_NODEV}
_FLAGS: Final = {"noexec": 8, "sync": 16, "dirsync": 128}


def remount(mountpoint: str, options: MountOptions) -> None:
    """Change the mount at *mountpoint* as *options* say. Raises CommandError."""
    entry = mount_at(os.path.realpath(mountpoint))
    if entry is None or entry.fstype != FSTYPE:
        raise failure(f"{mountpoint}: no daxfs is mounted there")
    with Client(entry.mountpoint) as client:
        if options.read_only:
            _change(entry, options)
        client.request("remount", read_only=options.read_only)
        if not options.read_only:
            _change(entry, options)


def _change(entry: MountEntry, options: MountOptions) -> None:
    flags = _MS_REMOUNT
    if options.read_only:
        flags |= _MS_RDONLY
    if options.atime == "noatime":
        flags |= _MS_NOATIME
    for word, flag in _FORBIDDING.items():
        if word not in options.kernel_flags:
            flags |= flag
    for word, flag in _FLAGS.items():
        if word in options.kernel_flags:
            flags |= flag
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(entry.mountpoint)
    if libc.mount(os.fsencode(entry.source), place, FSTYPE.encode(), flags, None) != 0:
        raise failure(f"{entry.mountpoint}: {os.strerror(ctypes.get_errno())}")
