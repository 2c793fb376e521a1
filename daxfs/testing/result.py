"""What an exploration came to: counts and failures."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class Failure(NamedTuple):
    """A state that failed."""

    id: str
    fault: str
    """Beginning with the number and the name of the oracle."""

    def __str__(self) -> str:
        return f"{self.id}: {self.fault}"


class Numbers:
    """A set of 64-bit numbers that takes many at a time and sorts them late."""

    def __init__(self) -> None:
        self._parts: list[Hashes] = []

    def add(self, numbers: Hashes) -> None:
        """Take *numbers*, some of which may be here already."""
        self._parts.append(numbers)

    def update(self, other: "Numbers") -> None:
        """Take those of *other*."""
        self._parts += other._parts

    def all(self) -> Hashes:
        """Each number once, ascending."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.zeros(0, np.uint64), *self._parts])]
        self._parts = [np.unique(self._parts[0])]
        return self._parts[0]

    def __len__(self) -> int:
        return len(self.all())

    @property
    def at_most(self) -> int:
        """An upper bound of the length, at once."""
        return sum(map(len, self._parts))


@dataclass
class Result:
    """What was explored, and what failed."""

    workloads: int = 0
    states: int = 0
    """Crash states looked at; some of them come more than once."""
    recoveries: int = 0
    """States that were recovered; each other new one was of the same case as one of these."""
    recovery_workloads: int = 0
    """Workloads of which recovery was interrupted."""
    recovery_states: int = 0
    """States of interrupted recoveries, distinct for each recovery."""
    failing: int = 0
    """States that failed."""
    failures: list[Failure] = field(default_factory=list)
    """Some of them, reduced."""
    distinct: Numbers = field(default_factory=Numbers)
    """The distinct states, by hash."""
    recovered: Numbers = field(default_factory=Numbers)
    """What recovery left, distinct, by hash: what the oracles saw."""

    def add(self, other: "Result") -> None:
        """Add up."""
        self.workloads += other.workloads
        self.states += other.states
        self.recoveries += other.recoveries
        self.recovery_workloads += other.recovery_workloads
        self.recovery_states += other.recovery_states
        self.failing += other.failing
        self.failures += other.failures
        self.distinct.update(other.distinct)
        self.recovered.update(other.recovered)
