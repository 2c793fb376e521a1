"""What /proc/self/mountinfo says about daxfs mounts (proc(5)).

Invariant: nothing here touches a mount itself, since that waits for a daemon that may be this very
process, or one that hangs.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FSTYPE = "fuse.daxfs"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """One line of mountinfo."""

    mountpoint: str
    source: str
    """For a daxfs the image, as it was named to ``daxfs mount``."""
    fstype: str
    device: str
    """``major:minor``, as in st_dev and /sys/class/bdi."""
    root: str
    """The folder of the filesystem that is seen at the mountpoint: ``/`` but for bind mounts."""

    @property
    def major(self) -> int:
        """The major number of the device."""
        return int(self.device.partition(":")[0])

    @property
    def minor(self) -> int:
        """The minor number of the device."""
        return int(self.device.partition(":")[2])


def mounts(pid: int | str = "self") -> Iterator[MountEntry]:
    """All mounts that process *pid* sees; of several at one place the one on top comes last."""
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines():
        # ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS...] - FSTYPE SOURCE SUPER-OPTIONS
        place, _, filesystem = line.partition(b" - ")
        words = place.split(b" ")
        fstype, source = filesystem.split(b" ")[:2]
        yield MountEntry(
            _unescape(words[4]), _unescape(source), _unescape(fstype), words[2].decode(),
            _unescape(words[3]),
        )  # fmt: skip


def mount_at(mountpoint: str) -> MountEntry | None:
    """The topmost mount at *mountpoint*, a path without symbolic links; None if there is none."""
    found = None
    for entry in mounts():
        if entry.mountpoint == mountpoint:
            found = entry
    return found


def mounts_of(device: str) -> list[MountEntry]:
    """The mounts of the filesystem *device*: itself, wherever it was moved to, and bind mounts."""
    return [entry for entry in mounts() if entry.device == device]


def same_filesystem(entry: MountEntry) -> list[MountEntry]:
    """The mounts of the daxfs that *entry* was once found to be; none if it is unmounted.

    Its device number alone proves nothing: after an unmount the next FUSE mount may get it at once.
    No two mounts have one image file; of those of images in memory the place decides.
    """
    return [
        other
        for other in mounts_of(entry.device)
        if (other.fstype, other.source) == (entry.fstype, entry.source)
        and (os.path.isabs(entry.source) or other.mountpoint == entry.mountpoint)
    ]


def _unescape(raw: bytes) -> str:
    """A field in which space, tab, newline and backslash are written in octal."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), raw))
