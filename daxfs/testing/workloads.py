"""Workloads for the crash-state explorer: a prepared tree and one, two or three steps.

    trees       the prepared trees
    steps       the operation instances
    ONE         each instance on the trees where it does something of its own
    two         each pair of ``PAIRED`` on the tree ``small``
    three       a seeded sample of triples of all instances there

A workload is known by its name, ``tree/step+step``, from which ``workload`` makes it again.

Invariants
- Everything is deterministic; only ``three`` takes a seed. Time is the engine's.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Final, NamedTuple

from daxfs.testing.steps import STEPS, Step
from daxfs.testing.trees import TREES, image_size

__all__ = ["INSTANCES", "ONE", "PAIRED", "TREES", "Step", "Workload", "three", "two", "workload"]

INSTANCES: Final = STEPS
"""The operation instances, by name."""

PAIRED: Final = list(STEPS)
"""The names of the instances of which every pair is run."""


class Workload(NamedTuple):
    """*steps* to be run one after the other on the prepared tree *tree*."""

    name: str
    tree: str
    steps: tuple[Step, ...]

    @property
    def image_size(self) -> int:
        """Bytes of the image that it needs."""
        return image_size(self.tree)


def _workload(tree: str, *names: str) -> Workload:
    return Workload(f"{tree}/{'+'.join(names)}", tree, tuple(STEPS[name] for name in names))


def workload(name: str) -> Workload:
    """The workload called *name*. ValueError if there is none."""
    tree, _, names = name.partition("/")
    steps = names.split("+")
    if tree not in TREES or not all(step in STEPS for step in steps):
        raise ValueError(f"there is no workload {name!r}")
    return _workload(tree, *steps)


ONE: Final = [_workload("small", name) for name in STEPS]
"""The workloads of one operation."""


def two() -> Iterator[Workload]:
    """All workloads of two operations."""
    for first, second in product(PAIRED, repeat=2):
        yield _workload("small", first, second)


def three(seed: int, count: int) -> Iterator[Workload]:
    """*count* workloads of three operations, chosen by *seed*."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _workload("small", *chance.choices(PAIRED, k=3))
