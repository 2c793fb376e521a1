"""Options of scripts/crash-test by which nothing would be tested."""

import pytest
from click.testing import CliRunner

from daxfs.testing.commands.main import main


@pytest.mark.parametrize(
    "line",
    [
        *(
            f"{name} --jobs 0"
            for name in ("explore", "faults", "fuzz", "kill", "mutants", "poison")
        ),
        *(f"{name} --minutes -1" for name in ("explore", "faults", "fuzz", "kill", "poison")),
        "explore --workloads 0",
        "explore --states 0",
        "fuzz --images 0",
        "kill --kills -1",
        "kill --clients -1",
        "kill --kills 0 --clients 0",
        "long --lanes 0",
        "mutants no-such-mutant",
    ],
)
def test_nothing_to_do_is_refused(line: str) -> None:
    run = CliRunner().invoke(main, line.split())
    assert run.exit_code == 2
    assert "Error: " in run.output.splitlines()[-1]
