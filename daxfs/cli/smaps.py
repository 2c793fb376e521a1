"""``daxfs smaps``: the mappings of a process that lie on a daxfs mount."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click

from daxfs.cli.command import PATH, command
from daxfs.cli.mounts import daxfs_mounts
from daxfs.errors import CommandError

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) ")


@command(
    "smaps",
    example="""
daxfs smaps 4711
daxfs smaps 4711 /mnt/file
""",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.argument("path", type=PATH, required=False)
def smaps(pid: int, path: str | None) -> None:
    """Show the daxfs mappings of process PID.

    In the form of /proc/PID/smaps, those mappings that lie on a daxfs mount; with PATH only those
    of that file.
    """
    try:
        devices = {(mount.major, mount.minor) for mount in daxfs_mounts(pid)}
        text = Path(f"/proc/{pid}/smaps").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CommandError(f"there is no process {pid}: check the number") from error
    wanted = None if path is None else _identity(path)
    shown = list(select(text, devices, wanted))
    if not shown:
        where = "on a daxfs mount" if path is None else f"of {path} on a daxfs mount"
        raise CommandError(f"process {pid} maps nothing {where}: check what it has open")
    click.echo("".join(shown).encode(errors="surrogateescape"), nl=False)


def select(
    text: str, devices: set[tuple[int, int]], wanted: tuple[int, int, int] | None
) -> Iterator[str]:
    """The entries of *text*, in the form of smaps, on one of *devices* (major, minor).

    With *wanted* (major, minor, inode number) only those of that file.
    """
    entry: list[str] = []
    takes = False
    for line in text.splitlines(keepends=True):
        header = _HEADER.match(line)
        if header is not None:
            if takes:
                yield "".join(entry)
            device = int(header[1], 16), int(header[2], 16)
            takes = device in devices and wanted in (None, (*device, int(header[3])))
            entry = []
        entry.append(line)
    if takes:
        yield "".join(entry)


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
