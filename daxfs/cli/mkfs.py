"""``daxfs mkfs``: make an image."""

import os
import stat

import click

from daxfs.cli.command import PATH, SIZE, command, explain
from daxfs.errors import CommandError
from daxfs.units import PAGE_SIZE, format_size

DEFAULT_SIZE = 1 << 30


@command(
    "mkfs",
    example="""
daxfs mkfs --size 1G /dev/shm/pmem
daxfs mkfs --force --label scratch --inodes 4096 /dev/shm/pmem
""",
)
@click.option(
    "--size",
    type=SIZE,
    metavar="SIZE",
    help="Size of a new image, with K, M, G or T behind the number.  [default: 1G]",
)
@click.option(
    "--inodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many files it can hold.  [default: one for each 16 KiB]",
)
@click.option("--label", default="", metavar="LABEL", help="A name for it, of up to 32 bytes.")
@click.option("--force", is_flag=True, help="Overwrite what the file holds.")
@click.argument("image", type=PATH)
def mkfs(size: int | None, inodes: int | None, label: str, force: bool, image: str) -> None:
    """Make an image in the file IMAGE.

    A new file is sparse and readable only for its owner; a file that exists is formatted at the
    size that it has. A file that is not empty is overwritten only with --force.
    """
    exists = _check_target(image, force)
    present = os.path.getsize(image) if exists else 0
    total = _size(image, present, size)
    if total % PAGE_SIZE:
        raise CommandError(f"{total} bytes are no multiple of 4096: take a size that is one")
    _format(image, total, inodes, label, exists)


def _check_target(image: str, force: bool) -> bool:
    """Whether the file *image* exists; refuses what must not be formatted."""
    from daxfs.mkfs.format import check_overwrite

    folder = os.path.dirname(image) or "."
    if not os.path.isdir(folder):
        raise CommandError(f"{folder}: no such directory: make it first, or check the path")
    try:
        mode = os.stat(image).st_mode
    except FileNotFoundError:
        if os.path.islink(image):
            raise CommandError(
                f"{image}: is a symbolic link to nothing: name the file itself, or remove the link"
            ) from None
        return False
    if stat.S_ISDIR(mode):
        raise CommandError(f"{image}: is a directory: name a file")
    if not stat.S_ISREG(mode):
        raise CommandError(f"{image}: is not a regular file: name a file")
    present = check_overwrite(image)
    if present is not None and not force:
        raise CommandError(f"{image} is {present}: give --force to overwrite it")
    return True


def _size(image: str, present: int, size: int | None) -> int:
    """The size to format *image* at: *present*, what it has, unless that is nothing."""
    if present == 0:
        return DEFAULT_SIZE if size is None else size
    if size is not None and size != present:
        raise CommandError(
            f"{image}: has {present} bytes, not {size}: leave --size out, or remove the file first"
        )
    return present


def _format(image: str, size: int, inodes: int | None, label: str, exists: bool) -> None:
    """Make the image, and leave no new file behind if that fails."""
    from daxfs.mkfs.format import format_image
    from daxfs.pmem.image import Image

    created = False
    try:
        with Image.create(image, size, reuse=exists) as target:
            created = not exists
            target.lock()
            superblock = format_image(
                target,
                inodes=inodes,
                label=label,
                root_uid=os.geteuid(),
                root_gid=os.getegid(),
            )
        created = False
    except ValueError as error:
        raise CommandError(f"{image}: {error}") from error
    except OSError as error:
        raise CommandError(explain(error, subject=image)) from error
    finally:
        if created:
            os.unlink(image)
    data_blocks = superblock.data_end - superblock.data_start
    click.echo(
        f"{image}: {format_size(size)}, {data_blocks} blocks of 4 KiB for data, "
        f"{superblock.inode_count} inodes, UUID {superblock.uuid}"
        + (f", label {label}" if label else "")
    )
