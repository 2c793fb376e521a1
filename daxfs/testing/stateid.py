"""The name of a crash state, short enough to be typed: ``WORKLOAD@EVENT:LINES``.

    small/create@m57:                 the program died before event 57 of the log
    small/create@p57:41,44*2          power went: of what was pending only line 0x41 is there, and
                                      the first 2 stores to line 0x44
    small/create@p57:~41              all that was pending is there but line 0x41
    small/create@p57:41/p12:10        and then again, before event 12 of the recovery

Lines are numbers of 64-byte lines of the image, in hexadecimal.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from daxfs.testing.states import CrashDomain, CrashPoint

_CUT: Final = re.compile(r"([mp])(\d+):(~?)((?:[0-9a-f]+(?:\*\d+)?(?:,|$))*)")
_DOMAINS: Final[dict[str, CrashDomain]] = {"m": "memory", "p": "power"}


class Cut(NamedTuple):
    """One crash: where, and what is kept of the lines that are pending there."""

    domain: CrashDomain
    event: int
    is_lost: bool
    """Whether ``lines`` are those that are not there as a whole; else those that are there."""
    lines: dict[int, int | None]
    """How many of a line's pending stores are kept; None: all of them, or none where lost."""

    @classmethod
    def of(cls, point: CrashPoint, choice: Sequence[int]) -> "Cut":
        """The crash at *point* with *choice*, in the shorter of the two forms."""
        kept: dict[int, int | None] = {}
        lost: dict[int, int | None] = {}
        for line, contents, count in zip(point.lines, point.contents, choice, strict=True):
            full = count == len(contents) - 1
            if count:
                kept[line] = None if full else int(count)
            if not full:
                lost[line] = int(count) or None
        is_lost = len(lost) < len(kept)
        return cls(point.domain, point.event, is_lost, lost if is_lost else kept)

    def choice(self, point: CrashPoint) -> list[int]:
        """The choice at *point* that this means."""
        found = []
        for line, contents in zip(point.lines, point.contents, strict=True):
            full = len(contents) - 1
            inside, outside = (0, full) if self.is_lost else (full, 0)
            count = self.lines.get(line, outside)
            found.append(inside if count is None else min(count, full))
        return found

    def __str__(self) -> str:
        lines = [
            f"{line:x}" if count is None else f"{line:x}*{count}"
            for line, count in self.lines.items()
        ]
        return f"{self.domain[0]}{self.event}:{'~' * self.is_lost}{','.join(lines)}"


class StateId(NamedTuple):
    """A crash state of the workload called *workload*; with two cuts, of the recovery after it."""

    workload: str
    cuts: tuple[Cut, ...]

    @classmethod
    def parse(cls, text: str) -> "StateId":
        """What ``str`` of an id says. ValueError."""
        workload, _, rest = text.rpartition("@")
        cuts = []
        for part in rest.split("/"):
            match = _CUT.fullmatch(part)
            if match is None or not workload:
                raise ValueError(f"{text!r} is not WORKLOAD@EVENT:LINES")
            lines: dict[int, int | None] = {}
            for word in filter(None, match[4].split(",")):
                line, _, count = word.partition("*")
                lines[int(line, 16)] = int(count) if count else None
            cuts.append(Cut(_DOMAINS[match[1]], int(match[2]), bool(match[3]), lines))
        return cls(workload, tuple(cuts))

    def __str__(self) -> str:
        return f"{self.workload}@{'/'.join(map(str, self.cuts))}"
