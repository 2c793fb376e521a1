"""``daxfs mount``: mount an image."""

import click

from daxfs.cli.command import PATH, SIZE, ExitCodes, command
from daxfs.errors import MountExit
from daxfs.fuse.logs import LOG_HELP
from daxfs.fuse.options import OPTIONS_HELP, mentions_atime, parse_options, wants_remount

_CODES = ExitCodes(
    usage=MountExit.USAGE,
    failure=MountExit.FAILED,
    internal=MountExit.INTERNAL,
    interrupted=MountExit.INTERRUPTED,
)


@command(
    "mount",
    example="""
daxfs mount /dev/shm/pmem /mnt
daxfs mount -o dax=inode,hole_cache=16M /dev/shm/pmem /mnt
daxfs mount --size 1G :memory: /mnt
mount -t fuse.daxfs -o ro /dev/shm/pmem /mnt
mount -o remount,rw /mnt
""",
    codes=_CODES,
    note=LOG_HELP,
    section=("Mount options", OPTIONS_HELP),
)
@click.option(
    "-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, joined by commas."
)
@click.option("-f", "foreground", is_flag=True, help="Stay in the foreground.")
@click.option("--size", type=SIZE, metavar="SIZE", help="The size of :memory:.")
@click.argument("image", type=PATH)
@click.argument("mountpoint", type=PATH)
def mount(
    options: tuple[str, ...], foreground: bool, size: int | None, image: str, mountpoint: str
) -> None:
    """Mount the image IMAGE at the directory MOUNTPOINT.

    Returns when the mount can be used; a daemon serves it until it is unmounted. The image
    :memory: is made in memory, with the size given, and is gone after the unmount.
    """
    from daxfs.fuse import daemon, remount

    text = ",".join(options)
    wanted = parse_options(text)
    if wants_remount(text):
        remount.remount(mountpoint, wanted, atime=mentions_atime(text))
        return
    serve = daemon.mount_in_foreground if foreground else daemon.mount_in_background
    serve(image, mountpoint, wanted, size=size)
