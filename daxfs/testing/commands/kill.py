"""``scripts/crash-test kill``: kill daemons and clients under load."""

import click

from daxfs.testing.commands.main import JOBS, JSON, MINUTES, finish


@click.command(
    epilog="""\b
Example:
  scripts/crash-test kill --kills 200 --clients 200
  scripts/crash-test kill --minutes 10 --seed 7 --json results.jsonl
"""
)
@click.option(
    "--kills",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="How many daemons to kill.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="How many clients to kill.",
)
@click.option("--minutes", type=MINUTES, default=0.0, help="Go on for so long instead.")
@click.option("--seed", default=1, show_default=True, help="Picks loads, moments and ways.")
@JOBS
@JSON
def command(
    kills: int, clients: int, minutes: float, seed: int, jobs: int, json: str | None
) -> None:
    """Kill daemons and clients at random moments under load; nothing may be lost.

    Needs /dev/fuse. Where a round fails, its image and the clients' notes are left.
    """
    from daxfs.testing import kill

    if not (kills or clients or minutes):
        raise click.UsageError("there is nothing to kill: give --kills, --clients or --minutes")

    finish(kill.run(kills=kills, clients=clients, minutes=minutes, seed=seed, jobs=jobs), json=json)
