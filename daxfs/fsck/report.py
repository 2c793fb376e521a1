"""What a check has found.

Invariant: a problem is counted once, as fixed or as left; the exit code follows from the counts.
"""

from collections.abc import Callable

from daxfs.errors import FsckExit


class Report:
    """Counts problems and prints a line for each; *repair* says whether they are being fixed."""

    def __init__(self, repair: bool, say: Callable[[str], None]) -> None:
        self.repair = repair
        self.say = say
        self.fixed = 0
        self.left = 0
        self.serious = 0
        """The problems that an unclean stop does not explain."""

    def problem(self, text: str, fix: str, *, usual: bool = False) -> None:
        """Tell of a problem that *fix* (an imperative) mends.

        *usual*: an unclean stop leaves it.
        """
        self.serious += not usual
        if self.repair:
            self.fixed += 1
        else:
            self.left += 1
        self.say(f"{text}: {fix}? {'yes' if self.repair else 'no'}")

    def unfixable(self, text: str) -> None:
        """Tell of a problem that nothing here mends."""
        self.left += 1
        self.serious += 1
        self.say(f"{text}: not repaired")

    @property
    def exit_code(self) -> FsckExit:
        """fsck(8)'s exit code for what was found."""
        code = FsckExit.CLEAN
        if self.fixed:
            code |= FsckExit.CORRECTED
        if self.left:
            code |= FsckExit.UNCORRECTED
        return code
