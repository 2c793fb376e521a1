"""``daxfs fsck``: check an image, and repair it."""

import sys

import click

from daxfs.cli.command import PATH, ExitCodes, command, explain
from daxfs.errors import CommandError, FsckExit

_CODES = ExitCodes(
    usage=FsckExit.USAGE,
    failure=FsckExit.OPERATIONAL,
    internal=FsckExit.OPERATIONAL,
    interrupted=FsckExit.CANCELED,
)


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
@click.argument("image", type=PATH)
def fsck(never: bool, always: bool, image: str) -> int:
    """Check the image IMAGE, and repair it.

    It must not be mounted. Without -n and -y it asks once whether to repair what it found; where
    nobody can answer, it only checks.

    \b
    Exit codes, as of fsck(8):
       0  nothing is wrong
       1  problems were repaired
       4  problems are left
       8  it could not be checked
      16  wrong usage
      32  interrupted
    """
    if never and always:
        raise click.UsageError("-n and -y exclude each other")
    return int(_check(image, always, may_ask=not never and not always and sys.stdin.isatty()))


def _check(path: str, repair: bool, may_ask: bool) -> FsckExit:
    """Check *path*; with *may_ask*, the person at the terminal decides whether to repair."""
    from daxfs.fsck.checker import check_image
    from daxfs.pmem.image import Image

    try:
        image = Image.open(path, writable=repair or may_ask)
    except OSError as error:
        raise CommandError(explain(error, subject=path), FsckExit.OPERATIONAL) from error
    with image:
        try:
            image.lock()
        except OSError as error:
            raise CommandError(
                f"{error.strerror}: unmount it first", FsckExit.OPERATIONAL
            ) from error
        code = check_image(image, repair=repair, say=click.echo)
        if may_ask and code & FsckExit.UNCORRECTED and click.confirm("Repair it?"):
            code = check_image(image, repair=True, say=click.echo)
    return code
