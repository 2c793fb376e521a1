"""``crash-test mutants``: does the explorer see bugs that are made on purpose?"""

import time
from pathlib import Path

import click

from daxfs.testing.commands.main import JOBS, JSON, finish
from daxfs.testing.hunt import hunt, outcome, read_table, table
from daxfs.testing.mutants import mutants


@click.command()
@click.argument("names", nargs=-1)
@click.option("--table", "path", type=Path, help="Write the table of mutants to this file.")
@click.option("--afresh", is_flag=True, help="Do not begin with who killed a mutant last.")
@click.option("--list", "is_list", is_flag=True, help="Only print the names of the mutants.")
@JOBS
@JSON
def command(
    names: tuple[str, ...],
    path: Path | None,
    afresh: bool,
    is_list: bool,
    jobs: int,
    json: str | None,
) -> None:
    """Break each store, flush and fence of daxfs once, and have the crash tests find it.

    Only mutants whose names contain one of NAMES; without, all. Needs the source tree.

    \b
    Examples:
      scripts/crash-test mutants
      scripts/crash-test mutants --table docs/MUTANTS.md
      scripts/crash-test mutants Journal.finish
    """
    targets = [m for m in mutants() if not names or any(name in m.name for name in names)]
    if not targets:
        raise click.UsageError("no mutant has such a name; --list tells the names")
    if is_list:
        for mutant in targets:
            click.echo(mutant.name)
        return
    started = time.monotonic()
    kills = []
    for kill in hunt(targets, jobs, {} if afresh else read_table()):
        kills.append(kill)
        click.echo(f"{kill.mutant.name}: {kill.by or 'SURVIVED'} ({kill.how})")
    if path is not None:
        path.write_text(table(kills))
    finish(outcome(kills, time.monotonic() - started), json=json)
