"""``daxfs map``: where the bytes of a file are."""

import json
import os
import stat
from typing import Any

import click

from daxfs.cli.command import PATH, command
from daxfs.cli.table import show_table
from daxfs.errors import CommandError
from daxfs.units import PAGE_SIZE, align_up

_COLUMNS = ("file offset", "length", "image offset")


@command(
    "map",
    example="""
daxfs map /mnt/file
daxfs map --json /mnt/file
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("file", type=PATH)
def map_command(as_json: bool, file: str) -> None:
    """Show where the bytes of a file are.

    FILE lies on a daxfs mount. First its extents - data, unwritten, hole -, then the entries that
    the DAX index has over them: PTE (4 KiB each) or PMD (2 MiB), zero or mapped. All in bytes.
    """
    from daxfs.fuse.control import Client

    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise CommandError(f"{file}: is not a regular file: name one")
    with Client(file) as client:
        values = client.request("map", ino=status.st_ino)
    values["holes"] = holes(values["extents"], values["size"])
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    show_table(
        f"{file}: {values['size']} bytes, {values['blocks']} blocks",
        _extents(values),
        columns=("extent", *_COLUMNS),
        numbers=3,
    )
    click.echo()
    show_table("DAX entries", _entries(values), columns=("entry", *_COLUMNS), numbers=3)


def holes(extents: list[dict[str, Any]], size: int) -> list[dict[str, int]]:
    """The gaps between *extents*, in ascending order, of a file of *size* bytes, in whole pages."""
    found = []
    position = 0
    end = align_up(size, PAGE_SIZE)
    for start, stop in [(e["offset"], e["offset"] + e["length"]) for e in extents] + [(end, end)]:
        if position < min(start, end):
            found.append({"offset": position, "length": min(start, end) - position})
        position = max(position, stop)
    return found


def _extents(values: dict[str, Any]) -> list[list[str]]:
    rows = [
        (e["offset"], "unwritten" if e["unwritten"] else "data", e["length"], e["image_offset"])
        for e in values["extents"]
    ]
    rows += [(hole["offset"], "hole", hole["length"], None) for hole in values["holes"]]
    return [_row(what, offset, length, place) for offset, what, length, place in sorted(rows)]


def _entries(values: dict[str, Any]) -> list[list[str]]:
    return [
        _row(
            entry["kind"].replace("_", " ").replace("pte", "PTE").replace("pmd", "PMD")
            + (" dirty" if entry["dirty"] else ""),
            entry["offset"],
            entry["length"],
            entry["image_offset"],
        )
        for entry in values["entries"]
    ]


def _row(what: str, offset: int, length: int, place: int | None) -> list[str]:
    return [what, str(offset), str(length), "-" if place is None else str(place)]
