"""``scripts/crash-test fuzz``: hostile images."""

import secrets

import click

from daxfs.errors import CommandError
from daxfs.testing.commands.main import COUNT, JOBS, JSON, MINUTES, finish
from daxfs.testing.fuzz import fuzz, replay
from daxfs.testing.guided import fuzz_guided

IMAGES_DEFAULT = 20_000
IMAGES_MOUNTED = 40


@click.command(
    "fuzz",
    epilog="""\b
Example:
  scripts/crash-test fuzz --images 20000
  scripts/crash-test fuzz --minutes 60 --seed 7
  scripts/crash-test fuzz --replay 7.1234/0,2
  scripts/crash-test fuzz --mount --images 40
  scripts/crash-test fuzz --atheris --minutes 10 --corpus corpus
""",
)
@click.option("--images", type=COUNT, metavar="N", help=f"Try N images [{IMAGES_DEFAULT:,}].")
@click.option("--minutes", type=MINUTES, metavar="N", help="Try images for N minutes.")
@click.option("--seed", metavar="S", help="Which images; without it others each time.")
@click.option(
    "--mount", is_flag=True, help="Try them with the real commands and real mounts, much slower."
)
@click.option(
    "--atheris",
    "guided",
    is_flag=True,
    help="Choose images by the code that they reach (pip install 'daxfs[fuzz]'); needs --minutes.",
)
@click.option("--corpus", metavar="FOLDER", help="Where --atheris keeps what it has learned.")
@JOBS
@click.option("--replay", "case", metavar="ID", help="Try the image that a failure names again.")
@JSON
def command(
    images: int | None,
    minutes: float | None,
    seed: str | None,
    mount: bool,
    guided: bool,
    corpus: str | None,
    jobs: int,
    case: str | None,
    json: str | None,
) -> None:
    """Try damaged images of all kinds.

    Small images with everything in them are changed in every field of every structure, with
    right checksums, and by blocks. Each is then inspected, mounted, walked, changed, checked and
    repaired.
    """
    if case is not None:
        try:
            outcome = replay(case, mount=mount)
        except (ValueError, IndexError) as error:
            raise click.UsageError(f"{case} names no image: {error}") from error
        finish(outcome, json=json)
    if seed is not None and (seed.startswith("x") or "/" in seed):
        raise click.UsageError(f"--seed {seed}: an 'x' in front and '/' have a meaning in names")
    if guided:
        if minutes is None:
            raise click.UsageError("--atheris needs --minutes")
        try:
            outcome = fuzz_guided(seconds=minutes * 60, jobs=jobs, corpus=corpus)
        except CommandError as error:
            raise click.ClickException(str(error)) from error
        finish(outcome, json=json)
    if images is None and minutes is None:
        images = IMAGES_MOUNTED if mount else IMAGES_DEFAULT
    outcome = fuzz(
        seed=seed or secrets.token_hex(4),
        images=images,
        seconds=None if minutes is None else minutes * 60,
        jobs=jobs,
        mount=mount,
        say=lambda line: click.echo(line, err=True),
    )
    finish(outcome, json=json)
