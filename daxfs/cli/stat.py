"""``daxfs stat``: the figures of a mount."""

import json
from typing import Any

import click

from daxfs.cli.command import PATH, command
from daxfs.cli.table import show_table
from daxfs.units import format_size

_US = 1000


@command(
    "stat",
    example="""
daxfs stat /mnt
daxfs stat --json /mnt
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; sizes are bytes, times ns.")
@click.argument("mountpoint", type=PATH)
def stat(as_json: bool, mountpoint: str) -> None:
    """Show the figures of a mounted daxfs.

    Blocks and inodes; the entries of the index by kind; how much of holes was served to the
    kernel, taken back, and is held by it now; faults; how long requests took.
    """
    from daxfs.fuse.control import Client

    with Client(mountpoint) as client:
        values = client.request("stat")
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    show_table(f"daxfs {values['image']} at {values['mountpoint']}", _figures(values))
    click.echo()
    show_table(
        "requests",
        _latencies(values["latency_ns"]),
        columns=("operation", "count", "p50 us", "p90 us", "p99 us", "max us"),
        numbers=5,
    )


def _figures(values: dict[str, Any]) -> list[tuple[str, str]]:
    entries, holes = values["entries"], values["holes"]
    rows = [
        ("dax", values["dax"]),
        ("daemon", f"process {values['pid']}, up {values['uptime_seconds']:.0f} s"),
    ]
    rows += [(name, _usage(values[name])) for name in ("blocks", "inodes")]
    rows += [
        (f"index: {size.upper()} {kind}", str(entries[f"{size}_{kind}"]))
        for size in ("pte", "pmd")
        for kind in ("zero", "mapped")
    ]
    rows.append(("index: memory", format_size(entries["memory_bytes"])))
    rows += [
        (f"holes: {what}", format_size(holes[f"{what}_bytes"]))
        for what in ("served", "evicted", "held", "budget")
    ]
    rows += [
        (name.replace("_", " "), format_size(count) if "bytes" in name else str(count))
        for name, count in values["counters"].items()
        if name != "hole_bytes_served"
    ]
    return rows


def _usage(counts: dict[str, int]) -> str:
    return f"{counts['used']} used, {counts['free']} free of {counts['total']}"


def _latencies(latencies: dict[str, dict[str, int]]) -> list[list[str]]:
    return [
        [op, str(row["count"]), *(f"{row[key] / _US:.1f}" for key in ("p50", "p90", "p99", "max"))]
        for op, row in latencies.items()
    ]
