"""Fixtures of the behaviour tables: users, and a folder for each script."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from posixscript import Cast


@pytest.fixture(scope="session")
def cast() -> Iterator[Cast]:
    """The users that scripts name; needs root."""
    made = Cast()
    yield made
    made.close()


@pytest.fixture
def play(as_root: None, folder: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``play(script)``: run a script in a fresh folder of the module's mount, open to everybody."""
    folder.chmod(0o777)
    cast: Cast = request.getfixturevalue("cast")

    def play(script: str) -> None:
        assert cast.play(script, folder) > 0

    return play
