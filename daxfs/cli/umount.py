"""``daxfs umount``: unmount, and wait until the image is released."""

import contextlib
import errno
import os
import time

import click

from daxfs.cli.command import PATH, ExitCodes, command
from daxfs.cli.mounts import find_mount
from daxfs.errors import CommandError, MountExit
from daxfs.fuse.control import Client
from daxfs.fuse.mountinfo import MountEntry, same_filesystem

_CODES = ExitCodes(
    usage=MountExit.USAGE,
    failure=MountExit.FAILED,
    internal=MountExit.INTERNAL,
    interrupted=MountExit.INTERRUPTED,
)
_POLL_SECONDS = 0.01
_WAIT_SECONDS = 60.0


@command("umount", example="daxfs umount /mnt", codes=_CODES)
@click.argument("mountpoint", type=PATH)
def umount(mountpoint: str) -> None:
    """Unmount the daxfs at MOUNTPOINT.

    Returns when everything is stored and the image is free, so that it can be mounted again at
    once. A mount whose daemon has died is detached; the next mount of the image recovers it.
    """
    from daxfs.fuse.mounting import detach, detach_dead

    entry = find_mount(mountpoint)
    if detach_dead(entry.mountpoint):
        return
    image = _image_of(entry)
    holders = _holders(image)
    try:
        detach(entry, lazy=False)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise CommandError(f"{mountpoint}: {error.strerror}", MountExit.FAILED) from error
        raise CommandError(
            f"{mountpoint}: is in use: end the programs that use it ('fuser -vm' shows them)",
            MountExit.FAILED,
        ) from error
    if not same_filesystem(entry):
        for holder in holders:
            _wait_for(holder, image)


def _image_of(entry: MountEntry) -> str:
    """The path of the image, which the source of *entry* may give from another directory."""
    from daxfs.pmem.image import ANONYMOUS_PATH

    if not os.path.isabs(entry.source) and entry.source != ANONYMOUS_PATH:
        with contextlib.suppress(CommandError), Client(entry.mountpoint) as client:
            return str(client.request("info")["path"])
    return entry.source


def _holders(image: str) -> list[int]:
    """The processes that hold the lock of *image*."""
    from daxfs.pmem.image import lock_holders

    try:
        return lock_holders(os.stat(image))
    except OSError:
        return []


def _wait_for(pid: int, image: str) -> None:
    """Return when the daemon *pid* has released *image*, which it does last."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while pid in _holders(image):
        if time.monotonic() > deadline:
            raise CommandError(
                f"unmounted here, but process {pid} still has {image} after {_WAIT_SECONDS:.0f} s: "
                "it stores much data, or another mount namespace has the mount still",
                MountExit.FAILED,
            )
        time.sleep(_POLL_SECONDS)
