"""``scripts/crash-test faults``: operations that cannot go on."""

import random

import click

from daxfs.testing.commands.main import JOBS, JSON, MINUTES, finish


@click.command(
    epilog="Example: scripts/crash-test faults --seed 7 --minutes 10 --json results.jsonl"
)
@click.option("--seed", type=int, help="Which places of an operation are interrupted.")
@click.option(
    "--minutes",
    type=MINUTES,
    default=0.0,
    metavar="N",
    help="Go on for so long; one round at least.",
)
@JOBS
@JSON
def command(seed: int | None, minutes: float, jobs: int, json: str | None) -> None:
    """Let operations fail: no block, inode, journal or page of the host is left, or no memory.

    Each operation of the workloads is run with each of these faults at each place where it can
    happen, and without memory, or interrupted, at places that the seed chooses. It must be undone
    (or done), and the filesystem must go on.
    """
    from daxfs.testing import faults

    if seed is None:
        seed = random.randrange(1 << 32)
    click.echo(f"seed {seed}")
    outcome = faults.run(
        seed=seed,
        seconds=minutes * 60,
        jobs=jobs,
    )
    finish(outcome, json=json)
