"""``long``: every part at once with its long numbers, and one table at the end."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import click

from daxfs.cli.table import show_table
from daxfs.testing.commands.main import JSON
from daxfs.testing.jobs import processors
from daxfs.testing.outcome import Figure, Outcome

TAIL_LINES = 20
"""So many last lines of a part that died are shown."""


class Part(NamedTuple):
    """A command of ``scripts/crash-test`` with the arguments of its long run."""

    command: str
    arguments: tuple[str, ...] = ()
    number: int = 0
    """Added to the seed: which of several that are alike it is."""
    is_seeded: bool = True

    def __str__(self) -> str:
        return " ".join((self.command, *self.arguments))


PARTS: Sequence[Part] = (
    Part("kill", ("--kills", "200", "--clients", "200")),
    Part("explore", ("--steps", "2")),
    Part("explore", ("--steps", "3")),
    Part("explore", ("--steps", "1", "--recovery")),
    Part("mutants", is_seeded=False),
    Part("faults", ("--minutes", "10")),
    Part("poison"),
    Part("fuzz", ("--mount", "--images", "200")),
    Part("fuzz", ("--atheris", "--minutes", "10")),
    *[Part("fuzz", ("--images", "100000"), number) for number in range(10)],
)
"""Many equal ones at the end, so that the processors are busy to the end."""


@click.command(
    epilog="\b\nExample:\n  scripts/crash-test long --json /tmp/long.json",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--seed", type=int, default=0, show_default=True, help="What random choices go by.")
@click.option(
    "--lanes",
    type=click.IntRange(min=1),
    default=processors,
    show_default="the processors",
    help="How many parts run side by side.",
)
@JSON
def command(seed: int, lanes: int, json: str | None) -> None:
    """Run every part with its long numbers, side by side; about two hours on 2 processors.

    What each part does and checks: docs/RELIABILITY.md. The exit code is 1 if anything failed.
    """
    start = time.monotonic()
    outcomes: dict[Part, Outcome] = {}
    for part, outcome, seconds in _run_all(seed, lanes):
        outcomes[part] = outcome
        verdict = "FAILED" if outcome.failures else "ok"
        click.echo(f"{part}: {verdict}, {seconds / 60:.0f} min", err=True)
        for line in outcome.failures:
            click.echo(f"FAILED: {part}: {line}", err=True)
        if json is not None:
            with open(json, "a") as file:
                file.write(outcome.to_json() + "\n")
    failed = sum(len(outcome.failures) for outcome in outcomes.values())
    show_table(
        f"{failed} failures, {(time.monotonic() - start) / 60:.0f} minutes, seed {seed}",
        [(name, *row) for name, outcome in _by_name(outcomes) for row in outcome.rows()],
        columns=("part", "", ""),
        numbers=1,
    )
    sys.exit(1 if failed else 0)


def _by_name(outcomes: dict[Part, Outcome]) -> Iterator[tuple[str, Outcome]]:
    """The outcome of each part, in the order of PARTS; of parts that are alike the sums."""
    for name in dict.fromkeys(str(part) for part in PARTS):
        alike = [outcomes[part] for part in PARTS if str(part) == name]
        if len(alike) == 1:
            yield name, alike[0]
            continue
        figures: dict[str, Figure] = {"parts": len(alike)}
        for key, value in alike[0].figures.items():
            if key == "seconds" or (isinstance(value, int) and key != "seed"):
                figures[key] = sum(outcome.figures.get(key, 0) for outcome in alike)  # type: ignore[misc]
        yield name, Outcome(alike[0].part, figures)


def _run_all(seed: int, lanes: int) -> Iterator[tuple[Part, Outcome, float]]:
    """Run PARTS, *lanes* at a time: as each ends, its outcome and how many seconds it took."""
    running: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daxfs-long-")))
        pool = stack.enter_context(ThreadPoolExecutor(lanes))
        stack.callback(_end, running)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        results = [folder / f"{index}.json" for index in range(len(PARTS))]
        jobs = {
            pool.submit(_run, part, result, seed, running): part
            for part, result in zip(PARTS, results, strict=True)
        }
        for job in as_completed(jobs):
            yield jobs[job], *job.result()


def _run(
    part: Part, result: Path, seed: int, running: list[subprocess.Popen[str]]
) -> tuple[Outcome, float]:
    """Run *part* in a process of its own, which writes its outcome to the file *result*."""
    start = time.monotonic()
    arguments = [*part.arguments, "--jobs", "1", "--json", str(result)]
    if part.is_seeded:
        arguments += ["--seed", str(seed + part.number)]
    process = subprocess.Popen(
        [sys.executable, "-m", "daxfs.testing", part.command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running.append(process)
    said, _ = process.communicate()
    seconds = time.monotonic() - start
    if result.exists():
        return Outcome.from_json(result.read_text()), seconds
    last = "\n".join(said.splitlines()[-TAIL_LINES:])
    return Outcome(part.command, {}, [f"ended with {process.returncode}: {last}"]), seconds


def _end(running: list[subprocess.Popen[str]]) -> None:
    """End what still runs: after an interruption."""
    for process in running:
        process.terminate()
    for process in running:
        process.wait()
