"""Fixtures for tests that need an image or a real mount.

``make_mount`` makes mounts as a test wants them; ``mount`` is one of the usual kind; ``shared``
is one mount for a whole module (its keyword arguments in the module's ``MOUNT``), and ``folder``
a fresh folder on it for each test. Every mount is unmounted, its log read and its image checked.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import (
    COMMAND,
    NOBODY,
    Control,
    DaxMount,
    OrdinaryUser,
    ordinary_user,
    run,
    unavailable,
)

MakeMount = Callable[..., DaxMount]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that mount are skipped, with the reason, where mounting is impossible."""
    reason = unavailable()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("mount"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder that every user can enter (pytest's own are 0700), removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="daxfs-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image_space(workspace: Path) -> Iterator[Path]:
    """A folder for images, in memory if the machine has /dev/shm."""
    if not os.access("/dev/shm", os.W_OK):
        yield workspace
        return
    folder = Path(tempfile.mkdtemp(prefix="daxfs-tests-", dir="/dev/shm"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def fuse_control(workspace: Path) -> Iterator[Control]:
    control = Control(workspace / "connections")
    yield control
    control.close()


class _Maker:
    """Makes images and mounts, and ends what it made."""

    def __init__(self, workspace: Path, image_space: Path, control: Control) -> None:
        self._workspace = workspace
        self._image_space = image_space
        self._control = control
        self._made: list[DaxMount] = []
        self._image_folders: list[Path] = []

    def image(
        self,
        size: str = "64M",
        *,
        inodes: int | None = None,
        user: OrdinaryUser | None = None,
        on_disk: bool = False,
    ) -> Path:
        """Format a fresh image (which *user* then owns, and its root directory too)."""
        space = self._workspace if on_disk else self._image_space
        folder = Path(tempfile.mkdtemp(prefix="i-", dir=space))
        self._image_folders.append(folder)
        if user is not None:
            os.chown(folder, user.uid, user.uid)
        path = folder / "image.pmem"
        count = [] if inodes is None else ["--inodes", str(inodes)]
        prefix = [] if user is None else user.prefix
        run([*prefix, *COMMAND, "mkfs", "--size", size, *count, path])
        return path

    def __call__(
        self,
        options: str = "",
        *,
        size: str = "64M",
        inodes: int | None = None,
        user: OrdinaryUser | None = None,
        image: Path | str | None = None,
        on_disk: bool = False,
        start: bool = True,
    ) -> DaxMount:
        """A mount with *options* of a fresh image, or of *image*; mounted unless not *start*."""
        if image is None:
            image = self.image(size, inodes=inodes, user=user, on_disk=on_disk)
        folder = Path(tempfile.mkdtemp(prefix="m-", dir=self._workspace))
        folder.chmod(0o755)
        made = DaxMount(
            folder,
            image,
            self._control,
            options=options,
            size=size if image == ":memory:" else None,
            user=user,
        )
        self._made.append(made)
        return made.start() if start else made

    def end(self) -> None:
        """End all mounts; raises what the first failing one complained about."""
        failure: Exception | None = None
        for made in reversed(self._made):
            try:
                made.finish()
            except (AssertionError, subprocess.TimeoutExpired) as complaint:
                failure = failure or complaint
            shutil.rmtree(made.folder, ignore_errors=True)
        for folder in self._image_folders:
            shutil.rmtree(folder, ignore_errors=True)
        if failure is not None:
            raise failure


@pytest.fixture
def make_mount(workspace: Path, image_space: Path, fuse_control: Control) -> Iterator[_Maker]:
    """``make_mount(options, size=..., inodes=..., user=...)`` and ``make_mount.image(size)``."""
    maker = _Maker(workspace, image_space, fuse_control)
    yield maker
    maker.end()


@pytest.fixture
def mount(make_mount: MakeMount) -> DaxMount:
    """A mount of a fresh 64 MiB image with the default options."""
    return make_mount()


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest, workspace: Path, image_space: Path, fuse_control: Control
) -> Iterator[DaxMount]:
    """One mount for all tests of a module: of a 256 MiB image, or as the module's MOUNT says."""
    maker = _Maker(workspace, image_space, fuse_control)
    made = maker(**{"size": "256M", **getattr(request.module, "MOUNT", {})})
    yield made
    maker.end()


@pytest.fixture
def folder(shared: DaxMount) -> Iterator[Path]:
    """A fresh folder on the module's shared mount; what the daemon logs meanwhile is checked."""
    shared.watch()
    path = Path(tempfile.mkdtemp(dir=shared.path))
    path.chmod(0o755)
    yield path
    shared.check_log()


@pytest.fixture
def as_root() -> None:
    """Skips the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def nobody(as_root: None) -> OrdinaryUser:
    """An ordinary user and a Python that it may run, for clients of a mount."""
    for python in (sys.executable, "/usr/bin/python3"):
        if run([python, "-c", ""], user=NOBODY, check=False).returncode == 0:
            return OrdinaryUser(NOBODY, python)
    pytest.skip("there is no Python that an ordinary user may run")


@pytest.fixture
def unprivileged(as_root: None, make_mount: MakeMount) -> MakeMount:
    """``unprivileged(options, size=...)``: a mount made by an ordinary user with fusermount3.

    The mount is seen only behind ``mount.client()``.
    """
    helper = shutil.which("fusermount3")
    if helper is None or not os.stat(helper).st_mode & 0o4000:
        pytest.skip("fusermount3 is not there or not setuid")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs unshare and setpriv (util-linux)")
    if run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("this root may not make mount namespaces")
    user = ordinary_user()
    if user is None:
        pytest.skip("an ordinary user may not run this Python or read this repository")

    return functools.partial(make_mount, user=user)
