"""``crash-test replay``: one crash state again."""

import click

from daxfs.testing.replay import replay


@click.command()
@click.argument("state")
def command(state: str) -> None:
    """Run the workload of STATE again, crash it there, and say what is wrong.

    STATE is what explore printed: the workload, the event of its log before which it crashes, and
    the cache lines that are kept, or lost. It prints the log, the stores in question and the oracle
    that fails; the exit code is then 1.

    \b
    Example:
      scripts/crash-test replay 'small/create@p16:40,41*2'
    """
    try:
        lines, fault = replay(state)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for line in lines:
        click.echo(line)
    click.echo(f"FAILED: {fault}" if fault else "no oracle fails")
    if fault:
        raise SystemExit(1)
