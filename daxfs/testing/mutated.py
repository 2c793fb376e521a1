"""A plugin of pytest that runs tests on a mutant.

    DAXFS_MUTANT=NAME pytest -p daxfs.testing.mutated TEST

For what the explorer cannot see (``hunt.BY_TESTS``): a test is right there that fails.
"""

import os
from contextlib import ExitStack
from typing import Any, Final

from daxfs.testing.mutants import mutants

VARIABLE: Final = "DAXFS_MUTANT"
_STACK: Final = ExitStack()


def pytest_configure(config: Any) -> None:
    """Make the mutant that the environment names."""
    by_name = {mutant.name: mutant for mutant in mutants()}
    _STACK.enter_context(by_name[os.environ[VARIABLE]].everywhere())


def pytest_unconfigure(config: Any) -> None:
    """Mend it."""
    _STACK.close()
