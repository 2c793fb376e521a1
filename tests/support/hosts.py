"""Hosts that are about to be full: small filesystems in memory for images larger than they are."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from daxmount import run


@contextlib.contextmanager
def small_tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of *size* on a new folder in *folder*, gone afterwards. Skips where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    path = folder / "host"
    path.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=False).returncode:
        pytest.skip("this root may not mount a tmpfs")
    try:
        yield path
    finally:
        run(["umount", "--lazy", path])


def fill_up(path: Path) -> int:
    """Write to the file *path* until its filesystem is full to the last page; its size."""
    with path.open("ab", buffering=0) as file:
        for piece in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(piece)):
                    pass
        return file.tell()
