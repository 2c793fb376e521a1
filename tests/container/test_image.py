"""The image of daxfs in a real container engine; scripts/test-container runs these."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from containers import Containers
from daxmount import REPOSITORY, daxfs, mount_minor, run

CAPABILITY = ("--cap-add", "SYS_ADMIN")
IMAGE_MAX_BYTES = 350_000_000
SUITE = ("python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
CANNOT_MOUNT = 32

users = pytest.mark.parametrize("user", [(), ("--user", "daxfs")], ids=["root", "ordinary_user"])


def test_the_image_is_small(containers: Containers) -> None:
    words = ("image", "inspect", "--format", "{{.Size}}", containers.image)
    assert int(containers.docker(*words).stdout) <= IMAGE_MAX_BYTES


@users
def test_without_a_command_it_prints_a_short_help(
    containers: Containers, user: Sequence[str]
) -> None:
    text = containers.run(user).stdout
    assert len(text.splitlines()) < 30
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in text
    assert "demo" in text
    assert "serve" in text


def test_the_exit_code_is_that_of_the_command(containers: Containers) -> None:
    assert containers.run((), "sh", "-c", "exit 7", check=False).returncode == 7
    assert containers.run((), "sh", "-c", "kill -9 $$", check=False).returncode == 137
    missing = containers.run((), "no-such-program", check=False)
    assert missing.returncode == 127
    assert "no-such-program" in missing.stderr


# --- what is missing is named, with the flag that gives it ---


@users
@pytest.mark.parametrize(("has_device", "capable"), [(False, True), (True, False), (False, False)])
def test_a_mount_says_which_of_the_two_is_missing(
    containers: Containers,
    device: Sequence[str],
    user: Sequence[str],
    has_device: bool,
    capable: bool,
) -> None:
    flags = [*user, *(device if has_device else ()), *(CAPABILITY if capable else ())]
    result = containers.run(flags, "mount", "--size", "16M", ":memory:", "/mnt/daxfs", check=False)
    assert result.returncode == CANNOT_MOUNT
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert ("--device /dev/fuse" in result.stderr) == (not has_device)
    assert ("--cap-add SYS_ADMIN" in result.stderr) == (not capable)


def test_the_mount_tests_fail_without_sys_admin(
    containers: Containers, device: Sequence[str]
) -> None:
    result = containers.run(
        device, *SUITE, "-x", "tests/mount/test_files.py", suite=True, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "SYS_ADMIN" in result.stdout


# --- the tests of the repository, in the container ---


def _passed(text: str) -> int:
    found = re.search(r"(\d+) passed", text)
    return int(found[1]) if found else 0


# Those that show what depends on the container; the others are the same everywhere.
ROOT_TESTS = ("files", "namespace", "xattr", "lifecycle", "mmap")
USER_TESTS = ("files", "namespace", "xattr")


def _mount_tests(names: Sequence[str]) -> list[str]:
    return [f"tests/mount/test_{name}.py" for name in names]


def test_the_mount_tests_pass_as_root(containers: Containers, mounting: Sequence[str]) -> None:
    """With the devices' attributes writable, as the readahead of a mount needs it."""
    bdi = ("--volume", "/sys/devices/virtual/bdi:/sys/devices/virtual/bdi")
    words = (*SUITE, *_mount_tests(ROOT_TESTS))
    result = containers.run((*mounting, *bdi), *words, suite=True)
    assert _passed(result.stdout) > 100, result.stdout


def test_the_mount_tests_pass_as_an_ordinary_user(
    containers: Containers, mounting: Sequence[str]
) -> None:
    words = (*SUITE, *_mount_tests(USER_TESTS))
    result = containers.run((*mounting, "--user", "daxfs"), *words, suite=True)
    assert _passed(result.stdout) > 50, result.stdout


def test_fio_verifies_what_it_wrote(containers: Containers, mounting: Sequence[str]) -> None:
    words = (*SUITE, "tests/programs/test_fio.py", "-k", "mmap")
    result = containers.run(mounting, *words, suite=True)
    assert _passed(result.stdout) >= 3, result.stdout


@users
def test_a_command_mounts_and_runs_fio(
    containers: Containers, mounting: Sequence[str], user: Sequence[str]
) -> None:
    script = (
        "daxfs mount --size 64M :memory: /mnt/daxfs && truncate -s 1G /mnt/daxfs/hole && "
        "fio --name=hole --filename=/mnt/daxfs/hole --size=1G --fallocate=none --rw=read "
        "--ioengine=mmap --eta=never && daxfs stat --json /mnt/daxfs"
    )
    text = containers.run((*mounting, *user), "sh", "-c", script).stdout
    assert "READ: bw=" in text
    assert re.search(r'"pmd_zero": 512\b', text), text


def test_demo_prints_its_table(containers: Containers, mounting: Sequence[str]) -> None:
    text = containers.run(mounting, "demo", "--rounds", "1").stdout
    assert "Reading a 1 GiB hole" in text
    assert re.search(r"Rss within 1 s.*\b1,048,576\b.*\b0\b", text), text


# --- the life of a container ---


@users
def test_stopping_a_container_unmounts(
    containers: Containers,
    mounting: Sequence[str],
    tmp_path: Path,
    user: Sequence[str],
    as_root: None,
) -> None:
    """SIGTERM to PID 1: the image is clean, and holds what was written just before."""
    folder = containers.folder / tmp_path.name
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    flags = (*mounting, *user, "--volume", f"{folder}:/images")
    script = "daxfs mkfs --size 32M /images/a && daxfs mount /images/a /mnt/daxfs && sleep 600"
    with containers.started(flags, "sh", "-c", script) as number:
        containers.wait_for_mount(number, "/mnt/daxfs")
        containers.docker("exec", number, "sh", "-c", "echo kept >/mnt/daxfs/file")
        containers.docker("stop", "--time", "30", number)
        assert containers.exit_code(number) == 128 + 15, "the shell's end by SIGTERM, no SIGKILL"
    daxfs("fsck", "-n", folder / "a")
    assert '"clean"' in daxfs("info", "--json", folder / "a").stdout
    again = "daxfs mount /images/a /mnt/daxfs && cat /mnt/daxfs/file"
    assert containers.run(flags, "sh", "-c", again).stdout == "kept\n"


def _serving(containers: Containers, mounting: Sequence[str], image: str) -> tuple[str, ...]:
    return (
        *mounting,
        *("--volume", f"{containers.share}:/mnt/share:rshared"),
        *("--volume", f"{containers.folder}:/images"),
        *("--env", f"DAXFS_IMAGE={image}", "--env", "DAXFS_SIZE=64M"),
        *("--env", "DAXFS_MOUNT=/mnt/share/daxfs"),
    )


def test_the_host_sees_a_served_mount(
    containers: Containers, mounting: Sequence[str], host_share: Path
) -> None:
    with containers.started(_serving(containers, mounting, ":memory:"), "serve") as number:
        containers.wait_for_mount(number, "/mnt/share/daxfs")
        (host_share / "from-host").write_text("hello")
        read = containers.docker("exec", number, "cat", "/mnt/share/daxfs/from-host")
        assert read.stdout == "hello"
        with (host_share / "hole").open("wb") as file:
            file.truncate(1 << 30)
        containers.docker("stop", "--time", "30", number)
        assert containers.exit_code(number) == 0
    assert list(host_share.iterdir()) == []


@pytest.mark.parametrize("cleaner", ["daxfs_umount", "next_container"])
def test_the_mount_of_a_killed_container_can_be_cleaned_up(
    containers: Containers, mounting: Sequence[str], host_share: Path, cleaner: str
) -> None:
    """By the host, or by the next container that mounts there, which recovers the image."""
    flags = _serving(containers, mounting, f"/images/{cleaner}")
    with containers.started(flags, "serve") as number:
        containers.wait_for_mount(number, "/mnt/share/daxfs")
        with (host_share / "file").open("w") as file:
            file.write("kept")
            file.flush()
            os.fsync(file.fileno())
        containers.docker("kill", number)
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(host_share)
    if cleaner == "daxfs_umount":
        daxfs("umount", host_share)
        assert mount_minor(host_share) is None
    with containers.started(flags, "serve") as number:
        containers.wait_for_mount(number, "/mnt/share/daxfs")
        assert (host_share / "file").read_text() == "kept"
        containers.docker("stop", "--time", "30", number)
    daxfs("fsck", "-n", containers.folder / cleaner)


def test_compose_serves_a_mount_to_a_job(containers: Containers, host_share: Path) -> None:
    """The job starts when the service is healthy; all end well, and no mount is left."""
    environment = {
        **os.environ,
        "DAXFS_TAG": containers.image,
        "DAXFS_SHARE": str(containers.share),
        "DAXFS_SIZE": "128M",
    }
    compose = [
        *containers.compose,
        *("--project-name", containers.project),
        *("--file", str(REPOSITORY / "docker/compose.yaml")),
    ]
    up = [*compose, "up", "--no-build", "--exit-code-from", "job"]
    try:
        text = run(up, env=environment, timeout=240).stdout
        assert "READ: bw=" in text
        label = f"label=com.docker.compose.project={containers.project}"
        every = containers.docker("ps", "--all", "--quiet", "--filter", label).stdout.split()
        assert [containers.exit_code(number) for number in every] == [0, 0]
    finally:
        run([*compose, "down"], env=environment)
