"""What is said where a process may not mount."""

import errno

import pytest

from daxfs.fuse.preflight import CAP_SYS_ADMIN, Rights, is_capable, why_not

FULL, NONE = f"{CAP_SYS_ADMIN:016x}", f"{0:016x}"


def in_container(device_error: int, capable: bool) -> str | None:
    return why_not(Rights("/dev/fuse", device_error, capable, container=True))


def on_host(device_error: int, capable: bool) -> str | None:
    return why_not(Rights("/dev/fuse", device_error, capable, container=False))


def test_nothing_is_said_where_nothing_is_missing() -> None:
    assert in_container(0, True) is None
    assert on_host(0, True) is None


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.ENXIO])
def test_container_without_the_device_names_only_its_flag(code: int) -> None:
    text = in_container(code, True)
    assert text is not None
    assert text.endswith("start it with --device /dev/fuse")
    assert "SYS_ADMIN" not in text


def test_container_without_the_capability_names_only_its_flag() -> None:
    text = in_container(0, False)
    assert text is not None
    assert text.endswith("start it with --cap-add SYS_ADMIN")
    assert "/dev/fuse" not in text


def test_container_without_both_names_both_flags() -> None:
    text = in_container(errno.ENOENT, False)
    assert text is not None
    assert text.endswith("start it with --device /dev/fuse --cap-add SYS_ADMIN")


def test_a_device_closed_to_the_user_is_not_called_missing() -> None:
    text = in_container(errno.EACCES, True)
    assert text is not None
    assert "chmod 666 /dev/fuse" in text
    assert "--device" not in text


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EIO])
def test_host_without_the_device_says_nothing_of_containers(code: int) -> None:
    text = on_host(code, True)
    assert text is not None
    assert text.startswith("/dev/fuse")
    assert "--device" not in text


def test_host_without_the_capability_says_so() -> None:
    assert "SYS_ADMIN" in (on_host(0, False) or "")


@pytest.mark.parametrize(
    ("root", "effective", "bounding", "no_new_privs", "capable"),
    [
        (True, FULL, FULL, "0", True),
        (True, NONE, FULL, "0", False),
        (True, FULL, FULL, "1", True),
        (False, NONE, FULL, "0", True),
        (False, NONE, NONE, "0", False),
        (False, NONE, FULL, "1", False),
    ],
)
def test_who_is_capable(
    root: bool, effective: str, bounding: str, no_new_privs: str, capable: bool
) -> None:
    status = {"CapEff": effective, "CapBnd": bounding, "NoNewPrivs": no_new_privs}
    assert is_capable(status, root=root) is capable
