"""The ``daxfs`` command: one module of this package for each of its commands."""

import click

import daxfs
from daxfs.cli.badblocks import badblocks
from daxfs.cli.command import Group
from daxfs.cli.fsck import fsck
from daxfs.cli.info import info
from daxfs.cli.map import map_command
from daxfs.cli.mkfs import mkfs
from daxfs.cli.mount import mount
from daxfs.cli.smaps import smaps
from daxfs.cli.stat import stat
from daxfs.cli.umount import umount


@click.group(
    cls=Group,
    epilog=(
        "\b\nExample:\n"
        "  daxfs mkfs --size 1G /dev/shm/pmem\n"
        "  daxfs mount /dev/shm/pmem /mnt\n"
        "  daxfs umount /mnt"
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(daxfs.__version__, prog_name="daxfs")
def main() -> None:
    """A FUSE filesystem that emulates Linux DAX over a memory-backed pmem image."""


for _command in (mkfs, mount, umount, fsck, badblocks, info, stat, map_command, smaps):
    main.add_command(_command)
