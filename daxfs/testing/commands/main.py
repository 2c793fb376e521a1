"""``scripts/crash-test``: one command for each way of testing that nothing is ever lost."""

import signal
import sys
from importlib import import_module

import click

from daxfs.cli.table import show_table
from daxfs.testing.jobs import processors
from daxfs.testing.outcome import Outcome

COMMANDS: dict[str, str] = {
    "fuzz": "fuzz",
    "kill": "kill",
    "explore": "explore",
    "replay": "replay",
    "poison": "poison",
    "mutants": "mutants",
    "faults": "faults",
    "long": "long",
}
"""The module of this package in which each command is, as the function ``command``."""


class _Late(click.Group):
    """Imports a command when it is called: ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"daxfs.testing.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(cls=_Late, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Test that daxfs loses nothing, whatever happens to it."""
    # A run that is ended takes down what it has built: processes, mounts.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def finish(outcome: Outcome, *, json: str | None) -> None:
    """Print *outcome*, append it as a line to the file *json*, and exit: 1 if anything failed."""
    show_table(outcome.part, outcome.rows(), numbers=1)
    for line in outcome.failures:
        click.echo(f"FAILED: {line}", err=True)
    if json is not None:
        with open(json, "a") as file:
            file.write(outcome.to_json() + "\n")
    sys.exit(1 if outcome.failures else 0)


JSON = click.option("--json", metavar="FILE", help="Append the result to FILE, a line of JSON.")
JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=processors,
    metavar="N",
    help="Processes. Default: all processors.",
)
COUNT = click.IntRange(min=1)
MINUTES = click.FloatRange(min=0)
