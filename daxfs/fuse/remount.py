"""Remount: make a mount read-only or writable, and change the flags that the kernel looks after.

Kernel counterpart: mount(2) with MS_REMOUNT, ext4_reconfigure().

The kernel refuses what programs ask of a read-only mount; the daemon, told over its control socket,
stops to set access times, and makes the image a clean one. Between the two steps the stricter rule
holds: the kernel is the first to forbid and the last to allow.
"""

import os

from daxfs.fuse.control import Client
from daxfs.fuse.mountinfo import FSTYPE, MountEntry, mount_at
from daxfs.fuse.mounting import MS_ATIME, MS_REMOUNT, change_flags, failure, mount_flags
from daxfs.fuse.options import MountOptions


def remount(mountpoint: str, options: MountOptions, *, atime: bool) -> None:
    """Change the mount at *mountpoint* as *options* say; when access times are set only if *atime*.

    Raises CommandError.
    """
    entry = mount_at(os.path.realpath(mountpoint))
    if entry is None or entry.fstype != FSTYPE:
        raise failure(f"{mountpoint}: no daxfs is mounted there")
    policy = {"atime": options.atime, "diratime": options.diratime} if atime else {}
    with Client(entry.mountpoint) as client:
        if options.read_only:
            _change(entry, options, atime=atime)
        client.request("remount", read_only=options.read_only, **policy)
        if not options.read_only:
            _change(entry, options, atime=atime)


def _change(entry: MountEntry, options: MountOptions, *, atime: bool) -> None:
    flags = MS_REMOUNT | mount_flags(options)
    if not atime:
        flags &= ~MS_ATIME  # then the kernel keeps what there is
    try:
        change_flags(entry, flags)
    except OSError as error:
        raise failure(f"{entry.mountpoint}: {error.strerror}") from None
