"""``daxfs fsck``: check an image, and repair it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from daxfs.cli.command import PATH, ExitCodes, command, explain
from daxfs.errors import CommandError, FsckExit

_CODES = ExitCodes(
    usage=FsckExit.USAGE,
    failure=FsckExit.OPERATIONAL,
    internal=FsckExit.OPERATIONAL,
    interrupted=FsckExit.CANCELED,
)
_BAR_AFTER_S: Final = 1.0
"""A check that takes longer shows how far it is."""
_BAR_EVERY_S: Final = 0.1

Progress = Callable[[str, int, int], None]


@command(
    "fsck",
    example="""
daxfs fsck -n /dev/shm/pmem
daxfs fsck -y /dev/shm/pmem
""",
    codes=_CODES,
)
@click.option("-n", "never", is_flag=True, help="Only check; the image is opened read-only.")
@click.option("-y", "always", is_flag=True, help="Repair without asking.")
@click.option(
    "-p",
    "-a",
    "preen",
    is_flag=True,
    help="As at boot: skip a clean image; without asking, repair what an unclean stop leaves, and"
    " nothing else.",
)
@click.option("-f", "force", is_flag=True, help="With -p: check also what is marked clean.")
@click.argument("image", type=PATH)
def fsck(never: bool, always: bool, preen: bool, force: bool, image: str) -> int:
    """Check the image IMAGE, and repair it.

    It must not be mounted. Without -n, -y and -p it asks once whether to repair what it found;
    where nobody can answer, it only checks.

    \b
    Exit codes, as of fsck(8):
       0  nothing is wrong
       1  problems were repaired
       4  problems are left
       8  it could not be checked
      16  wrong usage
      32  interrupted
    """
    if never + always + preen > 1:
        raise click.UsageError("-n, -y and -p exclude each other")
    may_ask = not (never or always or preen) and sys.stdin.isatty()
    return int(_check(image, always, may_ask=may_ask, preen=preen, force=force))


def _check(path: str, repair: bool, *, may_ask: bool, preen: bool, force: bool) -> FsckExit:
    """Check *path*; with *may_ask*, the person at the terminal decides whether to repair."""
    from daxfs.fsck.checker import check_image, is_marked_clean, preen_image
    from daxfs.pmem.image import Image

    try:
        image = Image.open(path, writable=repair or may_ask or preen)
    except OSError as error:
        raise CommandError(explain(error, subject=path), FsckExit.OPERATIONAL) from error
    with image:
        try:
            image.lock()
        except OSError as error:
            raise CommandError(
                f"{error.strerror}: unmount it first", FsckExit.OPERATIONAL
            ) from error
        if preen and not force and is_marked_clean(image):
            click.echo(f"{path}: clean")
            return FsckExit.CLEAN
        with _bar() as progress:
            if preen:
                return preen_image(image, say=click.echo, progress=progress)
            code = check_image(image, repair=repair, say=click.echo, progress=progress)
        if may_ask and code & FsckExit.UNCORRECTED and click.confirm("Repair it?"):
            with _bar() as progress:
                code = check_image(image, repair=True, say=click.echo, progress=progress)
    return code


@contextmanager
def _bar() -> Iterator[Progress]:
    """What hears how far a check is, and shows it on stderr, if that is a terminal, if it is long.

    It is gone at the end. Lines that are printed meanwhile stand above it.
    """
    if not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bar.add_task("")
    begin = shown = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - begin < _BAR_AFTER_S or now - shown < _BAR_EVERY_S:
            return
        shown = now
        bar.start()
        bar.update(task, description=name, completed=done, total=total, refresh=True)

    try:
        yield progress
    finally:
        bar.stop()
