"""What the allocators need of a transaction: to be told how it ended."""

from collections.abc import Callable
from typing import Protocol


class Hooks(Protocol):
    """The part of journal.undo.Transaction that allocators use."""

    def on_commit(self, call: Callable[[], None]) -> None:
        """Have *call* run after the commit."""

    def on_abort(self, call: Callable[[], None]) -> None:
        """Have *call* run after an abort; the last given runs first."""
