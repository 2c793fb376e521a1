"""``daxfs badblocks``: make sectors of an image unreadable, as a medium that fails does."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from daxfs.cli.command import PATH, SIZE, Command, command, explain
from daxfs.cli.mounts import daxfs_mounts
from daxfs.cli.table import show_table
from daxfs.errors import CommandError

if TYPE_CHECKING:
    from daxfs.pmem.image import Image


@click.group(
    "badblocks",
    epilog=(
        "\b\nExample:\n"
        "  daxfs badblocks add /dev/shm/pmem 4096 8\n"
        "  daxfs badblocks add /mnt/file --offset 1M --length 4K\n"
        "  daxfs badblocks list /mnt\n"
        "  daxfs badblocks clear --all /mnt"
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
def badblocks() -> None:
    """Make sectors of an image bad or good, and list the bad ones.

    Reading a bad sector of 512 bytes fails with EIO (SIGBUS through mmap), until all of it is
    written, or punched out. Bad blocks are the medium's: they outlive unmount and the daemon.

    TARGET is an image file, or a mountpoint, or a file on a mount.
    """


def _range_options(function: Any) -> Any:
    for option in (
        click.option("--length", type=SIZE, help="How many bytes of it.  [default: 1]"),
        click.option("--offset", type=SIZE, help="Bytes of the file TARGET, not sectors."),
        click.argument("count", type=click.IntRange(min=1), default=1),
        click.argument("first", type=click.IntRange(min=0), required=False),
        click.argument("target", type=PATH),
    ):
        function = option(function)
    return function


@command(
    "add",
    example="""
daxfs badblocks add /dev/shm/pmem 4096 8
daxfs badblocks add /mnt/file --offset 1M --length 4K
""",
)
@_range_options
def add(target: str, first: int | None, count: int, offset: int | None, length: int | None) -> None:
    """Make sectors bad: COUNT of the image from FIRST on, or those that bytes of a file lie in.

    What programs have written is stored first, and the kernel's copies of it are dropped.
    """
    _change("add", target, _range(target, first, count, offset, length))


@command(
    "clear",
    example="""
daxfs badblocks clear /dev/shm/pmem 4096 8
daxfs badblocks clear --all /mnt
""",
)
@click.option("--all", "everything", is_flag=True, help="Clear all bad blocks of the image.")
@_range_options
def clear(
    everything: bool,
    target: str,
    first: int | None,
    count: int,
    offset: int | None,
    length: int | None,
) -> None:
    """Make sectors good again; they hold what they held when they became bad."""
    if not everything:
        _change("clear", target, _range(target, first, count, offset, length))
        return
    if not (first is None and offset is None and length is None):
        raise click.UsageError("--all leaves no sectors to name")
    with _image(target) as image:
        runs = image.read_badblocks().runs
    for run in runs:
        _change("clear", target, {"first": run.first, "count": run.count})


@command(
    "list",
    example="""
daxfs badblocks list /mnt
daxfs badblocks list --plain /dev/shm/pmem
""",
)
@click.option("--plain", is_flag=True, help="Print `first_sector count` lines, as in sysfs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("target", type=PATH)
def list_command(plain: bool, as_json: bool, target: str) -> None:
    """List the bad sectors of an image, and what each of them hits."""
    from daxfs.inspect.badblocks import find_hits

    with _image(target) as image:
        if plain:
            for run in image.read_badblocks().runs:
                click.echo(f"{run.first} {run.count}")
            return
        hits = find_hits(image)
    if as_json:
        click.echo(json.dumps([vars(hit) for hit in hits], indent=2))
        return
    show_table(
        f"bad sectors: {sum(hit.count for hit in hits)}",
        [
            [
                str(hit.first),
                str(hit.count),
                hit.what,
                "-" if hit.ino is None else str(hit.ino),
                "-" if hit.offset is None else str(hit.offset),
                hit.path or "-",
            ]
            for hit in hits
        ],
        columns=("first", "count", "hits", "inode", "at byte", "path"),
    )


def _range(
    target: str, first: int | None, count: int, offset: int | None, length: int | None
) -> dict[str, int]:
    if (first is None) == (offset is None):
        raise click.UsageError("name either the first sector or, of a file, --offset")
    if first is not None:
        if length is not None:
            raise click.UsageError("--length belongs to --offset: name a COUNT of sectors")
        if os.path.isfile(target) and _is_on_mount(target):
            raise CommandError(
                f"{target}: sectors are the image's: name bytes of a file by --offset"
            )
        return {"first": first, "count": count}
    assert offset is not None
    return {"offset": offset, "length": 1 if length is None else length}


def _is_on_mount(target: str) -> bool:
    """Whether *target* lies on a daxfs mount."""
    status = os.stat(target)
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    return any(entry.device == device for entry in daxfs_mounts())


def _change(action: str, target: str, where: dict[str, int]) -> None:
    if _is_on_mount(target):
        _ask_daemon(action, target, where)
        return
    if "offset" in where:
        raise CommandError(f"{target}: is not a file on a mounted daxfs: name sectors")
    from daxfs.pmem.badblocks import Sectors
    from daxfs.pmem.image import Image
    from daxfs.pmem.persist import ReservingPersist, domain_for

    try:
        with Image.open(target) as image:
            image.lock()
            _check_is_ours(image)
            persist = ReservingPersist(image, domain_for(image, "auto"))
            run = Sectors(where["first"], where["count"])
            change = persist.add_badblocks if action == "add" else persist.clear_badblocks
            try:
                change(run)
            finally:
                persist.close()
    except ValueError as error:
        raise CommandError(f"{target}: {error}") from error
    except OSError as error:
        raise CommandError(explain(error, subject=target)) from error


def _check_is_ours(image: "Image") -> None:
    """Raise CorruptionError if *image* is a file that daxfs has not made."""
    from daxfs.inspect.image_info import find_superblock

    # The super blocks of one that has a table may lie in bad blocks.
    if not image.read_badblocks().is_there:
        find_superblock(image)


def _ask_daemon(action: str, target: str, where: dict[str, int]) -> None:
    from daxfs.fuse.control import Client

    status = os.stat(target)
    if "offset" in where:
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"{target}: is not a regular file: name sectors of the image")
        where = where | {"ino": status.st_ino}
    # What is dirty would clear the bad blocks when the kernel writes it.
    subprocess.run(["sync", "-f", target], check=False, capture_output=True)
    with Client(target) as client:
        client.request("badblocks", action=action, **where)


@contextmanager
def _image(target: str) -> "Iterator[Image]":
    """The image that *target* is, or that is mounted where it lies, to be read."""
    from daxfs.fuse.control import Client
    from daxfs.pmem.image import Image

    path = target
    if _is_on_mount(target):
        with Client(target) as client:
            live = client.request("info")
        path = f"/proc/{live['pid']}/fd/{live['fd']}"
    try:
        with Image.open(path, writable=False) as image:
            yield image
    except OSError as error:
        raise CommandError(explain(error, subject=path)) from error


_commands: tuple[Command, ...] = (add, clear, list_command)
for _command in _commands:
    _command.group = "daxfs badblocks"
    badblocks.add_command(_command)
