"""Workloads for the crash-state explorer: a prepared tree and one, two or three steps.

    trees       the prepared trees
    steps       the operation instances
    ONE         each instance on each tree where it does something of its own
    two         each pair of ``PAIRED`` on the tree ``small``
    three       a seeded sample of triples there

A workload is known by its name, ``tree/step+step``, from which ``workload`` makes it again. To be
run it needs a mount with access control lists, since some steps set them.

Invariants
- Everything is deterministic; only ``three`` takes a seed. Time is the engine's.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Final, NamedTuple

from daxfs.testing.steps import ELSEWHERE, SMALL, STEPS, Step
from daxfs.testing.trees import TREES, image_size

__all__ = ["INSTANCES", "ONE", "PAIRED", "TREES", "Step", "Workload", "three", "two", "workload"]

INSTANCES: Final = STEPS
"""The operation instances, by name."""

_UNPAIRED: Final = (
    *("create-umask", "mknod-socket", "mkdir-long", "link-long", "unlink-keep-x", "rename-long"),
    *(
        "rename-noreplace",
        "replace-f-from-d",
        "replace-by-d",
        "exchange-sub-file",
        "append-to-page",
    ),
    *("write-farthest", "write-behind", "truncate-hole", "truncate-in-data", "truncate-same"),
    *(
        "open-truncate-suid",
        "punch-last",
        "zero-all",
        "zero-keep",
        "zero-one-page",
        "copy-unwritten-behind",
    ),
    *("set-flags", "setxattr-empty", "set-plain-list", "unmount-mount"),
)
"""Those on the tree ``small`` of which another of the same operation says enough in pairs."""

PAIRED: Final = tuple(name for name in SMALL if name not in _UNPAIRED)
"""The names of the instances of which every pair is run."""

_MAKING: Final = ("create", "mknod", "mkdir", "symlink", "link")
_MOVING: Final = ("rename", "replace", "exchange")
_REMOVING: Final = ("unlink", "rmdir")
_GROWING: Final = ("append", "write", "truncate-up", "allocate", "zero", "copy", "setxattr")
_CUTTING: Final = ("truncate", "open-truncate", "punch", "unlink")

_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "empty": ("create-long", "create", "mknod-fifo", "mkdir", "symlink", "unmount"),
    "full-block": (*_MAKING, *_MOVING, "unlink"),
    "two-blocks": (*_MAKING, *_MOVING, *_REMOVING),
    "gap": (*_MAKING, "rename"),
    "deep": (*_MOVING, "rmdir"),
    "tall": ("append", "write-far", "copy", "unmount"),
    "attributes": (*_REMOVING, "create", "mkdir-in-d", "chmod", "chown", "setxattr", "set-"),
    "nearly-full": (*_MAKING, *_GROWING),
    "full": (*_GROWING, *_CUTTING, "mkdir", "rename", "rmdir"),
    "scattered": (*_GROWING, "create", "mkdir", "symlink-long"),
    "allocated": (*_GROWING, *_CUTTING),
}
"""The steps of the tree ``small`` that are of interest on another tree, by how names begin."""


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


def _one() -> Iterator[Workload]:
    for tree in TREES:
        kinds = _KINDS.get(tree, ())
        names = SMALL if tree == "small" else [n for n in SMALL if n.startswith(kinds)]
        for name in (*names, *ELSEWHERE.get(tree, ())):
            yield _workload(tree, name)


ONE: Final = list(_one())
"""The workloads of one operation."""


def two() -> Iterator[Workload]:
    """The workloads of two operations."""
    for first, second in product(PAIRED, repeat=2):
        yield _workload("small", first, second)


def three(seed: int, count: int) -> Iterator[Workload]:
    """*count* workloads of three operations, chosen by *seed*."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _workload("small", *chance.choices(PAIRED, k=3))
