"""Fixtures for the tests of the image."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Containers
from daxmount import mount_minor


@pytest.fixture(scope="session")
def containers() -> Containers:
    """The engine; skips where scripts/test-container has not started the tests."""
    text = os.environ.get("DAXFS_CONTAINERS")
    if text is None:
        pytest.skip("scripts/test-container runs the tests of the image")
    settings = json.loads(text)
    return Containers(**{**settings, "folder": Path(settings["folder"])})


@pytest.fixture
def host_share(containers: Containers, as_root: None) -> Iterator[Path]:
    """Where the host sees what a container mounts at /mnt/share/daxfs; empty afterwards."""
    place = containers.share / "daxfs"
    place.mkdir(exist_ok=True)
    yield place
    assert mount_minor(place) is None, "the mount is left on the host"


@pytest.fixture(scope="session")
def device(containers: Containers) -> tuple[str, ...]:
    """The flag that gives a container the device, for every user: the host's may be closed."""
    if os.geteuid() != 0 or os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return ("--device", "/dev/fuse")
    node = containers.folder / "fuse"
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    return ("--device", f"{node}:/dev/fuse")


@pytest.fixture(scope="session")
def mounting(device: tuple[str, ...]) -> tuple[str, ...]:
    """The flags of a container that mounts."""
    return (*device, "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined")
