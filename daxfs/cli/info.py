"""``daxfs info``: what an image is."""

import datetime
import json
import os
from typing import Any

import click

from daxfs.cli.command import PATH, command, explain
from daxfs.cli.table import show_table
from daxfs.errors import CommandError
from daxfs.units import PAGE_SIZE, format_size


@command(
    "info",
    example="""
daxfs info /dev/shm/pmem
daxfs info --json /mnt
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("image", metavar="IMAGE|MOUNTPOINT", type=PATH)
def info(as_json: bool, image: str) -> None:
    """Show what an image is and holds.

    It is given by its file or by the place where it is mounted, and only read. A damaged one is
    shown as far as one of its two super blocks is left.
    """
    values = _ask_daemon(image) if os.path.isdir(image) else _read(image)
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        show_table(f"daxfs image {values['path']}", _rows(values))


def _ask_daemon(mountpoint: str) -> dict[str, Any]:
    """The values of the image mounted at *mountpoint*; what changes is as the daemon has it."""
    from daxfs.fuse.control import Client

    with Client(mountpoint) as client:
        live = client.request("info")
    return _read(f"/proc/{live['pid']}/fd/{live.pop('fd')}") | live


def _read(path: str) -> dict[str, Any]:
    from daxfs.inspect.image_info import read_image
    from daxfs.pmem.image import Image

    try:
        with Image.open(path, writable=False) as image:
            return read_image(image).as_dict()
    except OSError as error:
        raise CommandError(explain(error, subject=path)) from error


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table for *values*, those of ImageInfo."""
    rows = [
        ("UUID", values["uuid"]),
        ("label", values["label"] or "-"),
        ("state", values["state"]),
        ("size", f"{format_size(values['size_bytes'])} ({values['block_count']} blocks)"),
        ("held by the host", format_size(values["allocated_bytes"])),
        ("blocks", f"{values['blocks_used']} used, {values['blocks_free']} free"),
        ("inodes", f"{values['inodes_used']} used, {values['inodes_free']} free"),
        ("files", str(values["files"])),
        ("directories", str(values["directories"])),
        ("symbolic links", str(values["symlinks"])),
        ("special files", str(values["specials"])),
        ("deleted but not freed", str(values["orphans"])),
        ("damaged inodes", str(values["damaged_inodes"])),
        ("created", _time(values["created_ns"])),
        ("last mount", _time(values["last_mount_ns"])),
        ("mounts", str(values["mount_count"])),
        ("format version", str(values["version"])),
    ]
    for name, region in values["regions"].items():
        size = format_size(region["blocks"] * PAGE_SIZE)
        rows.append((name, f"{size} from block {region['start']} on"))
    if "mountpoint" in values:
        rows.insert(0, ("mounted at", f"{values['mountpoint']} by process {values['pid']}"))
        rows.insert(1, ("persistence domain", values["persist"]))
    if values["problem"]:
        rows.insert(0, ("damaged", f"{values['problem']}; read from the backup"))
    return rows


def _time(time_ns: int) -> str:
    """*time_ns* since 1970 as local time; 0 is never."""
    if time_ns == 0:
        return "never"
    try:
        moment = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    except (ValueError, OverflowError):
        return f"{time_ns} ns"
    return moment.astimezone().isoformat(sep=" ")
