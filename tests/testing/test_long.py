"""The long run: every part is run, what one of them finds is told, and nothing of it is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from daxfs.testing.commands import long
from daxfs.testing.commands.main import COMMANDS, main

SMALL = (
    long.Part("explore", ("--workloads", "1")),
    long.Part("fuzz", ("--images", "20")),
    long.Part("fuzz", ("--images", "20"), 1),
    long.Part("mutants", ("Journal.finish flush",), is_seeded=False),
)


def test_its_parts_are_commands_and_leave_none_out() -> None:
    assert {part.command for part in long.PARTS} == set(COMMANDS) - {"long", "replay"}


def test_all_parts_are_run_and_their_figures_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(long, "PARTS", SMALL)
    file = tmp_path / "found"
    ran = CliRunner().invoke(main, ["long", "--seed", "3", "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "0 failures" in ran.output
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert {outcome["part"] for outcome in found} == {"explore", "fuzz", "mutants"}
    assert [outcome["figures"]["seed"] for outcome in found if outcome["part"] == "fuzz"] == [
        "3",
        "4",
    ]
    for part in SMALL:
        assert str(part) in ran.output
    assert re.search(r"fuzz --images 20 +images +40\b", ran.output)


def test_a_part_that_fails_or_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "PARTS", (*SMALL[:1], long.Part("explore", ("--steps", "9"))))
    ran = CliRunner().invoke(main, ["long", "--lanes", "1"])
    assert ran.exit_code == 1
    assert "FAILED: explore --steps 9: ended with 2: " in ran.output
    assert "distinct states" in ran.output


def children(pid: int) -> list[str]:
    """The processes that the process *pid* has started."""
    return [
        child
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_parts_too(way: signal.Signals) -> None:
    """They are processes of their own; what they have mounted or forked ends with them."""
    argv = [sys.executable, "-m", "daxfs.testing", "long", "--lanes", "2"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        deadline = time.monotonic() + 60
        while len(parts := children(run.pid)) < 2:
            assert time.monotonic() < deadline, "the parts never began"
            time.sleep(0.1)
        time.sleep(1)
        run.send_signal(way)
        run.communicate(timeout=60)
    assert run.returncode != 0
    assert not any(os.path.exists(f"/proc/{part}") for part in parts)
