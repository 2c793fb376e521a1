"""``crash-test poison``: spoil each line of the metadata of an image."""

import logging
import time
from itertools import count

import click

from daxfs.testing import poison
from daxfs.testing.commands.main import JOBS, JSON, MINUTES, finish
from daxfs.testing.jobs import processes
from daxfs.testing.outcome import Outcome

_CHUNK = 16
"""Cases that a process gets at a time."""


@click.command()
@click.option(
    "--minutes", type=MINUTES, help="Go on with other garbage until so much time is over."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the garbage.")
@JOBS
@JSON
def command(minutes: float | None, seed: int, jobs: int, json: str | None) -> None:
    """Spoil each line of an image's metadata: by a bad block, garbage, zeroes.

    Each time the image is mounted, read, changed, repaired and read again: what is read is right,
    or an error. Without a time each line is spoiled once in each way.

    \b
    Examples:
      scripts/crash-test poison
      scripts/crash-test poison --minutes 10 --seed 7
    """
    finish(run(minutes=minutes, seed=seed, jobs=jobs), json=json)


def run(
    *,
    minutes: float | None = None,
    seed: int = 0,
    jobs: int,
    ways: tuple[poison.Way, ...] = poison.WAYS,
) -> Outcome:
    """Run each case with *seed*, and with the seeds behind it until the time is over."""
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    images = poison.subjects()
    tally = poison.Tally()
    with processes(jobs, poison.start_worker, (images,)) as pool:
        for current in count(seed):
            # The same bad blocks again would tell nothing new.
            again = tuple(way for way in ways if way == "garbage") if current > seed + 1 else ways
            todo = list(poison.cases(images, again, current))
            for verdict in pool.imap_unordered(poison.run_here, todo, _CHUNK):
                tally.add(verdict)
            if minutes is None or time.monotonic() - started > minutes * 60:
                break
    logging.disable(logging.NOTSET)
    seconds = time.monotonic() - started
    lines = sum(len(subject.lines) for subject in images.values())
    figures = {"seed": seed, "lines": lines, **tally.figures()}
    return Outcome(
        "poison",
        {**figures, "cases_per_s": tally.count / seconds, "seconds": seconds},
        tally.failures,
    )
